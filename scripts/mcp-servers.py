"""What scripts/mcp-servers.sh runs: real servers behind the guard, the official Python SDK before it."""

import asyncio
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import httpx
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import ElicitResult

STAGE0, TOOLS = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
# Where people would reach the server: it goes into what clients are asked to open, and is never reached here.
PUBLIC_URL = "https://stage0.example.com"
TABLE = """
[context]
actor_role = "platform_admin"
[[mcp]]
server = "files"
tool = "read_*"
effects = ["read"]
[[mcp]]
server = "files"
tool = "list_*"
effects = ["read"]
[[mcp]]
server = "files"
tool = "write_file"
effects = ["deploy"]
send = ["path"]
[[mcp]]
server = "everything"
tool = "*"
effects = ["read"]
[[mcp]]
server = "notes"
tool = "publish"
effects = ["deploy"]
environment = "staging"
[[mcp]]
server = "notes"
tool = "*"
effects = ["read"]
"""
# A server of the SDK that keeps a state.
NOTES = """
import sys
from mcp.server.mcpserver import MCPServer
server, notes = MCPServer("notes"), []
@server.tool()
def add(text: str) -> int:
    notes.append(text)
    return len(notes)
@server.tool()
def count() -> int:
    return len(notes)
@server.tool()
def publish(text: str) -> str:
    return "published " + text
server.run(*sys.argv[1:2], **({"host": "127.0.0.1", "port": int(sys.argv[2])} if len(sys.argv) > 2 else {}))
"""


def holds(what, condition, seen=""):
    if not condition:
        sys.exit(f"FAILED {what}: {seen}")
    print(f"ok     {what}", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, condition):
    until = time.monotonic() + 30
    while not condition():
        if time.monotonic() > until:
            sys.exit(f"FAILED {what}: not in time")
        time.sleep(0.05)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class World:
    def __init__(self, directory):
        self.dir = directory
        self.data = directory / "data"
        (directory / "table.toml").write_text(TABLE)
        (directory / "notes.py").write_text(NOTES)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("STAGE0_")}
        self.dev = None
        self.processes = []
        self.start_dev()

    def start_dev(self):
        (self.data / "dev.json").unlink(missing_ok=True)
        command = [STAGE0, "dev", "--data-dir", str(self.data), "--listen", "127.0.0.1:0", "--public-url", PUBLIC_URL]
        self.dev = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until("stage0 dev", (self.data / "dev.json").exists)

    def api(self, key):
        dev = json.loads((self.data / "dev.json").read_text())
        context = ssl.create_default_context(cafile=dev["ca_file"])
        return httpx.Client(base_url=dev["url"], verify=context, headers={"x-api-key": dev.get(key, key)})

    def guard(self, name):
        return ["guard", "mcp", "--name", name, "--data-dir", str(self.data), "--table", str(self.dir / "table.toml"),
                "--pins", str(self.dir / "pins.json")]

    def stdio(self, name, *command, more=()):
        arguments = [*self.guard(name), *more, "--", *map(str, command)]
        return StdioServerParameters(command=STAGE0, args=arguments, env=self.environment)

    def serve(self, port, *command, **more):
        process = subprocess.Popen([*map(str, command)], env={**self.environment, **more})
        self.processes.append(process)
        wait_until(f"port {port}", lambda: listens(port))

    def http(self, name, upstream):
        port = free_port()
        listen = ["--upstream", upstream, "--listen", f"127.0.0.1:{port}"]
        self.serve(port, STAGE0, *self.guard(name), *listen)
        return f"http://127.0.0.1:{port}/mcp"

    def end(self):
        for process in [*self.processes, self.dev]:
            process.kill()
            process.wait()


async def files(world):
    root = world.dir / "files"
    root.mkdir()
    (root / "a.txt").write_text("hello")
    server = world.stdio("files", TOOLS / "node_modules/.bin/mcp-server-filesystem", root)
    async with Client(server) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        holds("filesystem: its tools are listed", "read_text_file" in names, names)
        read = await client.call_tool("read_text_file", {"path": str(root / "a.txt")})
        holds("filesystem: a file is read", not read.is_error and "hello" in read.content[0].text, read)
        write = await client.call_tool("write_file", {"path": str(root / "b.txt"), "content": "x"})
        holds("filesystem: a write is refused", write.is_error and not (root / "b.txt").exists(), write)
        unknown = await client.call_tool("move_file", {"source": str(root / "a.txt"), "destination": str(root / "c")})
        holds("filesystem: a tool of no table is refused", unknown.is_error and (root / "a.txt").exists(), unknown)

        world.dev.send_signal(signal.SIGSTOP)
        frozen = await client.call_tool("read_text_file", {"path": str(root / "a.txt")})
        world.dev.send_signal(signal.SIGCONT)
        holds("filesystem: a frozen Stage0 lets nothing run", frozen.is_error, frozen)
        holds("filesystem: and says not to retry blindly", "retry blindly" in frozen.content[0].text, frozen)
        again = await client.call_tool("read_text_file", {"path": str(root / "a.txt")})
        holds("filesystem: it goes on afterwards", not again.is_error, again)
        world.dev.kill()
        world.dev.wait()
        killed = await client.call_tool("read_text_file", {"path": str(root / "a.txt")})
        holds("filesystem: a killed Stage0 lets nothing run", killed.is_error, killed)
    world.start_dev()


async def everything(world):
    program = TOOLS / "node_modules/.bin/mcp-server-everything"
    port = free_port()
    world.serve(port, program, "streamableHttp", PORT=str(port))
    url = world.http("everything", f"http://127.0.0.1:{port}/mcp")
    for way, server in [("stdio", world.stdio("everything", program, "stdio")), ("http", url)]:
        async with Client(server) as client:
            print(f"       everything over {way} speaks {client.protocol_version}")
            names = [tool.name for tool in (await client.list_tools()).tools]
            holds(f"everything over {way}: its tools are listed", "echo" in names, names)
            echo = await client.call_tool("echo", {"message": "grüße"})
            holds(f"everything over {way}: echo", "grüße" in echo.content[0].text, echo)
            resources = (await client.list_resources()).resources
            read = await client.read_resource(str(resources[0].uri))
            holds(f"everything over {way}: a resource is read", len(read.contents) > 0, read)
            prompts = (await client.list_prompts()).prompts
            holds(f"everything over {way}: prompts are listed", len(prompts) > 0, prompts)
            steps = []

            async def progress(done, total, message):
                steps.append(done)

            long = next(name for name in names if "long" in name)
            await client.call_tool(long, {"duration": 1, "steps": 3}, progress_callback=progress)
            holds(f"everything over {way}: progress arrives", len(steps) > 1, steps)


async def notes(world):
    script, python = world.dir / "notes.py", sys.executable
    port = free_port()
    world.serve(port, python, script, "streamable-http", port)
    url = world.http("notes", f"http://127.0.0.1:{port}/mcp")
    for way, server in [("stdio", world.stdio("notes", python, script, "stdio")), ("http", url)]:
        async with Client(server) as client:
            print(f"       notes over {way} speaks {client.protocol_version}")
            await client.list_tools()
            for text in ["a", "b"]:
                await client.call_tool("add", {"text": text})
            count = await client.call_tool("count", {})
            holds(f"notes over {way}: its state is kept", "2" in count.content[0].text, count)
            try:
                missing = await client.call_tool("not_there", {})
                holds(f"notes over {way}: an unknown tool is refused", missing.is_error, missing)
            except MCPError as error:
                holds(f"notes over {way}: an unknown tool is refused", error.error.code == -32602, error)


async def approvals(world):
    """A call that waits for a person: by default an answer that says so, with --elicit a page that the client opens."""
    operator = world.api("operator_key")
    account = operator.post("/v1/accounts", json={"name": "team", "approvals": "verified"}).json()["id"]
    agent = operator.post("/v1/keys", json={"account": account, "name": "agent", "scopes": ["check"]}).json()
    invited = {"account": account, "name": "Ada", "mail": "ada@example.com"}
    code = operator.post("/v1/members", json=invited).json()["invitation_code"]
    ada = world.api(operator.post("/v1/invitations/accept", json={"code": code}).json()["key"])
    key = world.dir / "agent.key"
    key.touch(mode=0o600)
    key.write_text(agent["key"])
    opened = []

    async def open_page(context, asked):
        opened.append(asked.url)
        if approves:
            approve(asked.url.removeprefix(PUBLIC_URL))
        return ElicitResult(action="accept")

    def approve(path):
        shown = ada.get(path).json()
        answer = {"action_digest": shown["action_digest"], "reason": "checked"}
        ada.post(f"{path}/approve", json=answer).raise_for_status()

    def guarded(*more):
        script = world.dir / "notes.py"
        server = world.stdio("notes", sys.executable, script, "stdio", more=["--key-file", str(key), *more])
        return Client(server, elicitation_callback=open_page)

    approves = False
    async with guarded() as client:
        await client.list_tools()
        waits = await client.call_tool("publish", {"text": "a"})
        text, decision = waits.content[0].text, (waits.meta or {}).get("stage0/decision") or waits.structured_content
        command = f"stage0 approvals approve {decision['approval_id']} --key-file KEY"
        holds("approvals: the answer says what to type", waits.is_error and command in text, waits)
        holds("approvals: no page is opened", opened == [], opened)
        approve(f"/v1/approvals/{decision['approval_id']}")
        done = await client.call_tool("publish", {"text": "a"})
        holds("approvals: the tool runs when a person approved", "published a" in done.content[0].text, done)
    async with guarded("--elicit") as client:
        await client.list_tools()
        waits = await client.call_tool("publish", {"text": "b"})
        holds("approvals: with --elicit a page is opened, once", len(opened) == 1, opened)
        holds("approvals: its address", opened[0].startswith(f"{PUBLIC_URL}/v1/approvals/"), opened)
        holds("approvals: opening it approves nothing", waits.is_error and "published" not in str(waits.content), waits)
        approves = True
        done = await client.call_tool("publish", {"text": "c"})
        holds("approvals: a page on which a person approves", "published c" in done.content[0].text, done)


async def changed(world):
    script = world.dir / "notes.py"
    script.write_text(script.read_text().replace("def add(", "def add(secret: str = '', *, ").replace(", )", ")"))
    async with Client(world.stdio("notes", sys.executable, script, "stdio")) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        holds("changed: the tool is not listed", "add" not in names and "count" in names, names)
        held = await client.session.call_tool("add", {"text": "a"})
        holds("changed: and does not run", held.is_error and "pins accept" in held.content[0].text, held)
        accept = ["guard", "mcp", "pins", "accept", "--name", "notes", "--pins", str(world.dir / "pins.json")]
        subprocess.run([STAGE0, *accept], check=True, env=world.environment, stdout=subprocess.DEVNULL)
        runs = await client.session.call_tool("add", {"text": "a"})
        holds("changed: it runs once it is accepted", not runs.is_error, runs)


async def fetch(world):
    server = world.stdio("fetch", TOOLS / "venv/bin/mcp-server-fetch")
    async with Client(server) as client:
        await client.list_tools()
        refused = await client.call_tool("fetch", {"url": "http://127.0.0.1:9/"})
        holds("fetch: a tool of no table is refused", refused.is_error, refused)
        pins = json.loads((world.dir / "pins.json").read_text())["servers"]
        holds("fetch: its definition is pinned", "fetch" in pins["fetch"], pins)


async def main():
    with tempfile.TemporaryDirectory() as directory:
        world = World(pathlib.Path(directory))
        try:
            for part in [files, everything, notes, approvals, changed, fetch]:
                await part(world)
        finally:
            world.end()


asyncio.run(main())
