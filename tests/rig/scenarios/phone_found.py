"""A phone that is found. See phone.py."""
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import phone  # noqa: E402


async def peer(device):
    # What an iPhone takes at the least.
    await phone.be_found(device, "found", 185, "/tmp/found.sock")
