"""A phone that finds. See phone.py."""
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import phone  # noqa: E402


async def peer(device):
    await phone.find(device, "finding", "/tmp/finding.sock")
