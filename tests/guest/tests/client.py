"""What qemu.qmp, QEMU's own client library, makes of the control socket.

client.py SOCKET PID: ends the machine by "quit".
"""

import asyncio
import os
import sys

from qemu.qmp import ExecuteError, QMPClient


async def main(path, pid):
    client = QMPClient("test")
    seen = []

    async def listen():
        async for event in client.events:
            seen.append(event["event"])

    await client.connect(path)
    listener = asyncio.create_task(listen())
    assert client.greeting.QMP.version["qemu"]["major"] >= 1
    status = await client.execute("query-status")
    assert status["status"] == "running" and status["running"], status
    await client.execute("stop")
    status = await client.execute("query-status")
    assert status["status"] == "paused", status
    await client.execute("cont")
    cpus = await client.execute("query-cpus-fast")
    for cpu in cpus:
        assert os.path.isdir(f"/proc/{pid}/task/{cpu['thread-id']}"), cpu
    try:
        await client.execute("no-such-command")
        raise AssertionError("no error")
    except ExecuteError as error:
        assert error.error.error.class_ == "CommandNotFound", error
    await client.execute("system_reset")
    await client.execute("system_powerdown")
    # Many at once are answered each by its own.
    answers = await asyncio.gather(*(client.execute("query-version") for _ in range(20)))
    assert len(answers) == 20
    await client.execute("quit")
    for _ in range(100):
        if "SHUTDOWN" in seen:
            break
        await asyncio.sleep(0.1)
    try:
        await client.disconnect()
    except EOFError:
        # The machine that was told to quit has hung up first, as QEMU does.
        pass
    listener.cancel()
    assert seen == ["STOP", "RESUME", "RESET", "POWERDOWN", "SHUTDOWN"], seen
    print(f"{len(cpus)} processors;", " ".join(seen))


asyncio.run(main(sys.argv[1], sys.argv[2]))
