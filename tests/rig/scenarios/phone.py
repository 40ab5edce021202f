"""A phone made of Bumble: its own Bluetooth host and our independent BitChat peer, in either role.

The rig's radio runs `phone_found.py` (it advertises, as an iPhone with its smaller MTU) or
`phone_finding.py` (it scans and connects) on the air that the adapters share. The scenario steers it
through a Unix socket, in lines of JSON as `rig_node` has them.
"""
import asyncio
import json
import time

from bumble.core import AdvertisingData, UUID
from bumble.device import Peer as Remote
from bumble.gatt import Characteristic, CharacteristicValue, Service

import bitchat

SERVICE = UUID("F47B5E2D-4A9E-4C5A-9B3F-8E1D2C3A4B5C")
CHARACTERISTIC = UUID("A1B2C3D4-E5F6-4A5B-8C9D-0E1F2A3B4C5D")
ANNOUNCED = 15


class Phone:
    def __init__(self, nickname):
        self.log, self.writer = [], None
        self.queues, self.tasks = {}, set()
        self.peer = bitchat.Peer(nickname, self.put, self.tell, lambda: int(time.time() * 1000))
        self.peer_numbers = 0

    def tell(self, event):
        self.log.append(json.dumps(event) + "\n")
        if self.writer:
            self.writer.write(self.log[-1].encode())

    def put(self, link, frame):
        if link in self.queues:
            self.queues[link].put_nowait(frame)

    def up(self, link, max_frame, write):
        """`write` is awaited for each frame, one after the other (1.5), at a phone's pace (6.2)."""
        queue = self.queues[link] = asyncio.Queue()

        async def drain():
            while True:
                await write(await queue.get())
                await asyncio.sleep(0.02)
        task = asyncio.create_task(drain())
        self.tasks.add(task)
        self.tell({"event": "up", "max_frame": max_frame})
        self.peer.link_up(link, max_frame)

    def down(self, link):
        if self.queues.pop(link, None):
            self.tell({"event": "down"})
        self.peer.link_down(link)

    async def serve(self, path):
        """The scenario's way in; it also reads what happened before it came."""
        async def steer(reader, writer):
            for line in self.log:
                writer.write(line.encode())
            self.writer = writer
            async for line in reader:
                self.command(json.loads(line))
        self.server = await asyncio.start_unix_server(steer, path)
        self.tell({"event": "node", "id": self.peer.id.hex()})
        while True:
            await asyncio.sleep(ANNOUNCED)
            self.peer.announce()

    def command(self, line):
        if "private" in line:
            private = line["private"]
            self.peer_numbers += 1
            message_id = f"00000000-0000-4000-8000-{self.peer_numbers:012x}"
            self.tell({"event": "command", "id": message_id})
            self.peer.say_privately(bytes.fromhex(private["to"]), private["text"], message_id)
        elif "public" in line:
            self.peer.say_publicly(line["public"])
        elif "unsigned" in line:
            self.peer.say_publicly_unsigned(line["unsigned"])
        elif "handshake" in line:
            self.peer.begin(bytes.fromhex(line["handshake"]))
        elif "forge" in line:
            self.peer.forge(bytes.fromhex(line["forge"]["victim"]), line["forge"]["nickname"])


async def be_found(device, nickname, mtu, path):
    """Advertises and serves GATT (1.1, 1.2)."""
    phone = Phone(nickname)
    kinds, may = Characteristic.Properties, Characteristic.Permissions
    characteristic = Characteristic(
        CHARACTERISTIC, kinds.READ | kinds.WRITE | kinds.WRITE_WITHOUT_RESPONSE | kinds.NOTIFY,
        may.READABLE | may.WRITEABLE,
        CharacteristicValue(write=lambda connection, value: phone.peer.take(connection, bytes(value))))
    device.add_service(Service(SERVICE, [characteristic]))
    device.gatt_server.max_mtu = mtu

    def subscribed(connection, subject, has_notify, _):
        if subject is characteristic and has_notify and connection not in phone.queues:
            async def notify(frame):
                await device.notify_subscriber(connection, characteristic, frame)
            phone.up(connection, min(connection.att_mtu - 3, 512), notify)
            connection.on("disconnection", lambda _: phone.down(connection))
    device.gatt_server.on("characteristic_subscription", subscribed)
    device.advertising_data = bytes(AdvertisingData([
        (AdvertisingData.FLAGS, bytes([6])),
        (AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS, SERVICE.to_bytes())]))
    await device.start_advertising(auto_restart=True)
    await phone.serve(path)


async def find(device, nickname, path):
    """Scans, connects and subscribes (1.4) to the first that is no phone of this air."""
    phone = Phone(nickname)
    wanted = asyncio.get_running_loop().create_future()

    def advertised(advertisement):
        services = advertisement.data.get_all(
            AdvertisingData.COMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS) or []
        services += advertisement.data.get_all(
            AdvertisingData.INCOMPLETE_LIST_OF_128_BIT_SERVICE_CLASS_UUIDS) or []
        offered = [uuid for group in services for uuid in (group if isinstance(group, list) else [group])]
        is_phone = ":B0:B1:B2:B3:" in str(advertisement.address)
        if SERVICE in offered and not is_phone and not wanted.done():
            wanted.set_result(advertisement.address)
    device.on("advertisement", advertised)

    async def seek():
        await device.start_scanning()
        address = await wanted
        await device.stop_scanning()
        connection = await device.connect(address)
        remote = Remote(connection)
        mtu = await remote.request_mtu(517)
        await remote.discover_services()
        for service in remote.services:
            await service.discover_characteristics()
        found = remote.get_characteristics_by_uuid(CHARACTERISTIC)[0]
        await found.subscribe(lambda value: phone.peer.take(connection, bytes(value)))
        connection.on("disconnection", lambda _: phone.down(connection))

        async def write(frame):
            await found.write_value(frame, with_response=False)
        phone.up(connection, min(mtu - 3, 512), write)
    seeking = asyncio.create_task(seek())
    seeking.add_done_callback(lambda task: task.exception() and phone.tell(
        {"event": "error", "text": repr(task.exception())}))
    await phone.serve(path)
