"""Registers two peers, sends a message and receives it, all with the generated client.

`generated_client` is what openapi-python-client makes of openapi/gateway.json; the only argument
is the address of a gateway that asks for tokens.
"""

import importlib
import pkgutil
import sys

import generated_client
from generated_client import AuthenticatedClient, Client
from generated_client.api.inbox import confirm_messages, get_inbox
from generated_client.api.messages import get_message, send_message
from generated_client.api.peers import register_peer
from generated_client.models import Confirmation, DeliveryState, RegisterPeer, SendMessage

TEXT = "Grüße über die Brücke 🌉"


def main(base: str) -> None:
    for module in pkgutil.walk_packages(generated_client.__path__, "generated_client."):
        importlib.import_module(module.name)

    alice, bob = (register(base, name) for name in ("alice-generated", "bob-generated"))
    request = SendMessage(to="bob-generated", content=TEXT)
    accepted = send_message.sync_detailed(client=alice, body=request)
    assert accepted.status_code == 202, accepted
    message_id = accepted.parsed.message_id

    page = get_inbox.sync(client=bob, wait=20)
    [received] = page.messages
    assert (received.message_id, received.content) == (message_id, TEXT), received
    assert (received.from_, received.seq) == ("alice-generated", 1), received

    confirmed = confirm_messages.sync_detailed(client=bob, body=Confirmation(up_to=received.seq))
    assert confirmed.status_code == 204, confirmed
    assert get_inbox.sync(client=bob).messages == []
    record = get_message.sync(client=alice, message_id=message_id)
    assert record.status == DeliveryState.DELIVERED, record


def register(base: str, peer: str) -> AuthenticatedClient:
    request = RegisterPeer(peer_id=peer, public_key=f"key of {peer}")
    registered = register_peer.sync(client=Client(base_url=base), body=request)
    return AuthenticatedClient(base_url=base, token=registered.token, timeout=30.0)


if __name__ == "__main__":
    main(sys.argv[1])
