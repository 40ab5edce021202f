"""What the clients of two gateways sent and saw, in the form that the history checker judges
(`tests/harness/src/history.rs`); `./dev rig` runs the checker over the file afterwards."""
import asyncio
import json
import time
import uuid

BEGAN = time.monotonic()
PERIOD = 0.5
TTL = 3600


def now():
    return int((time.monotonic() - BEGAN) * 1_000_000)


class Traffic:
    """Peers of two gateways who write to each other until they are told to stop."""

    def __init__(self):
        self.events, self.streams = [], 0
        self.sent, self.seen, self.writing = {}, {}, True

    def add(self, kind, **event):
        self.events.append({kind: event})

    async def write(self, gateway, sender, other, recipient):
        number = 0
        while self.writing:
            number += 1
            message, content = str(uuid.uuid4()), f"{sender} {number}"
            body = {"to": f"{recipient}@{other.id}", "content": content, "message_id": message, "ttl": TTL}
            invoked, outcome = now(), "Done"
            try:
                await asyncio.to_thread(gateway.ask, "/v1/messages", body, sender)
                self.sent[message] = (gateway, sender, recipient)
            except OSError:
                outcome = "Unknown"
            self.add("Send", sender=sender, message=message, recipients=[recipient], content=content,
                     min_anonymity=0, ordered=True, ttl=TTL * 1_000_000, invoked=invoked, completed=now(),
                     outcome=outcome)
            await asyncio.sleep(PERIOD)

    async def read(self, gateway, peer):
        while True:
            self.streams += 1
            opened, stream = now(), self.streams
            try:
                page = await asyncio.to_thread(gateway.ask, "/v1/inbox?wait=2", None, peer)
            except OSError:
                continue
            for message in page["messages"]:
                self.seen[message["message_id"]] = now()
                self.add("Shown", peer=peer, seq=message["seq"], message=message["message_id"],
                         sender=message["from"].split("@")[0], content=message["content"],
                         gap=message.get("gap", False), late=message.get("late", False), stream=stream,
                         opened=opened, at=now())
            if page["messages"]:
                up_to, invoked, outcome = page["messages"][-1]["seq"], now(), "Done"
                try:
                    await asyncio.to_thread(gateway.ask, "/v1/inbox/ack", {"up_to": up_to}, peer)
                except OSError:
                    outcome = "Unknown"
                self.add("Confirm", peer=peer, what={"UpTo": up_to}, invoked=invoked, completed=now(),
                         outcome=outcome)

    async def settle(self, within):
        """Waits until all that was accepted has been shown; what was not by then is lost."""
        self.writing, end = False, time.monotonic() + within
        while time.monotonic() < end and not set(self.sent) <= set(self.seen):
            await asyncio.sleep(0.5)
        for message, (gateway, sender, recipient) in self.sent.items():
            invoked = now()
            told = await asyncio.to_thread(gateway.ask, f"/v1/messages/{message}", None, sender)
            deliveries = [
                {"recipient": recipient, "status": each["status"],
                 "transports": sorted({attempt["transport"] for attempt in each["attempts"]})}
                for each in told["recipients"]
            ]
            self.add("Report", sender=sender, message=message, deliveries=deliveries, invoked=invoked,
                     completed=now(), unknown=False)

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"events": self.events, "settled": True, "levels": {"ble": 0}}, file)
