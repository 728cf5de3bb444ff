"""Moving in from the real packages: what their own code wrote, copied, and read by ours."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from frameworks import python_of
from test_moving_in import APP, OURS, load, snapshot

from qqbot_session.cli import main

SDKS = {
    "botpy-sdk": """
import asyncio, sys
from botpy.protocol.models import SessionState
from botpy.protocol.session import JsonFileSessionStore
async def run():
    store = JsonFileSessionStore(sys.argv[1])
    state = SessionState(session_id="THEIRS", sequence=41, shard_id=0, shard_count=1)
    await store.save("102000000", state)
    await store.close()
    assert (await JsonFileSessionStore(sys.argv[1]).load("102000000", 0)).sequence == 41
asyncio.run(run())
""",
    "agent-sdk": """
import sys
from qqbot_agent_sdk.session_store import WSSessionStore
if not WSSessionStore(sys.argv[1]).get("102000000").session_id:
    WSSessionStore(sys.argv[1]).save("102000000", "THEIRS", 41, 1 << 25)
assert WSSessionStore(sys.argv[1]).get("102000000").seq == 41
""",
}
NODE = {  # the package, the file that has the store in it, and what to export of a part of it
    "@alemonjs/qq-bot@2.1.35": ("lib/sdk/session.js", ""),
    "openclaw@2026.3.31": ("dist/gateway-*.js", "export { saveSession, loadSession };"),
    "openclaw@2026.4.29": (
        "dist/extensions/qqbot/gateway-*.js",
        "export { saveSession, loadSession };",
    ),
}
HOST = """
import fs from "node:fs"; import path from "node:path";
const fsSync = fs, debugLog = () => {}, debugError = console.error, formatErrorMessage = String;
const getQQBotDataPath = (...parts) => path.join(process.env.HOME, ".openclaw", "qqbot", ...parts);
const getQQBotDataDir = (...parts) => {
  const made = getQQBotDataPath(...parts); fs.mkdirSync(made, { recursive: true }); return made;
};
"""


def moves(source: Path, target: Path) -> None:
    before = snapshot(source)
    assert main(["copy", str(source), str(target)]) == 0
    assert snapshot(source) == before
    state = load(target, OURS, app_id=APP)
    assert state is not None
    assert (state.session_id, state.last_seq) == ("THEIRS", 41)


@pytest.mark.parametrize("name", SDKS)
def test_a_session_of_a_python_sdk_moves_in(tmp_path: Path, name: str) -> None:
    python = python_of(name)
    if not python.exists():
        pytest.skip("its environment is made by .ci/frameworks")
    for _ in range(2):  # the second time, theirs is as they left it
        subprocess.run([str(python), "-c", SDKS[name], str(tmp_path / "theirs")], check=True)
    moves(tmp_path / "theirs", tmp_path / "ours")
    subprocess.run([str(python), "-c", SDKS[name], str(tmp_path / "theirs")], check=True)


def module_of(package: str, where: Path) -> Path:
    """Return the package's session store as a module that runs alone."""
    pattern, exports = NODE[package]
    subprocess.run(["npm", "pack", "--silent", package], cwd=where, check=True, stdout=-3)
    with tarfile.open(next(where.glob("*.tgz"))) as archive:
        wanted = [each for each in archive if fnmatch.fnmatch(each.name, f"package/{pattern}")]
        archive.extractall(where, wanted, filter="data")
    for path in sorted((where / "package").glob(pattern)):
        text = path.read_text("utf-8")
        if not exports:
            module = text
        elif region := re.search(r"//#region \S*/session-store\.ts\n.*?//#endregion", text, re.S):
            module = f"{HOST}{region[0]}\n{exports}"
        else:
            continue
        (where / "store.mjs").write_text(module, "utf-8")
        return where / "store.mjs"
    raise LookupError(f"{package} has no session store in {pattern}")


@pytest.mark.slow
@pytest.mark.parametrize("package", NODE)
def test_a_session_of_a_node_program_moves_in(tmp_path: Path, package: str) -> None:
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("needs npm and node")
    module = module_of(package, tmp_path)
    state = {"sessionId": "THEIRS", "lastSeq": 41, "lastConnectedAt": 1, "intentLevelIndex": 0,
             "accountId": "default", "savedAt": 0, "appId": APP}  # fmt: skip
    if NODE[package][1]:
        program = f"saveSession({json.dumps(state)})"
        source = tmp_path / ".openclaw"
    else:
        session = {"botId": APP, "sessionId": "THEIRS", "sequence": 41}
        program = f"await new FileSessionStore().save({json.dumps(session)})"
        source = tmp_path / ".data" / "qq-bot" / "sessions"
    name = program.split("(")[0].replace("await new ", "")
    code = f"import {{ {name} }} from {json.dumps(module.as_uri())}; {program}"
    subprocess.run(
        ["node", "--input-type=module", "-e", code],
        cwd=tmp_path, check=True, env={"PATH": str(Path(shutil.which("node") or "").parent),
                                       "HOME": str(tmp_path)},
    )  # fmt: skip
    moves(source, tmp_path / "ours")
