// What a program in TypeScript writes with the generated types; it is compiled, not run.
import type { components, operations, paths } from "./gateway";

type Send = components["schemas"]["SendMessage"];
type Registered =
  paths["/v1/peers"]["post"]["responses"][201]["content"]["application/json"];
type Page = operations["getInbox"]["responses"][200]["content"]["application/json"];

export const message: Send = { to: "bob", content: "The bridge is open.", priority: "high" };

// @ts-expect-error: the types would be worth nothing if this compiled.
export const nowhere: Send = { content: "The bridge is open." };
// @ts-expect-error: nor if this did.
export const shouted: Send = { to: "bob", priority: "loud" };

export function tokenOf(registered: Registered): string | null | undefined {
  return registered.token;
}

export function texts(page: Page): string[] {
  return page.messages.flatMap(({ content, seq }) => (content == null ? [] : [`${seq}: ${content}`]));
}
