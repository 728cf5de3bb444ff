"""Whether the frameworks still have the hooks that the integrations put themselves into."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import frameworks
import pytest

from qqbot_session.integrations._shapes import require, require_fields

_MODULES = {
    "botpy": ["botpy"],
    "botpy-sdk": ["botpy", "botpy_sdk_store"],
    "nonebot": ["nonebot"],
    "agent-sdk": ["agent_sdk"],
}


def _modules(environment: str) -> list[str]:
    names = [name for name in _MODULES if environment.startswith(name)]
    return _MODULES[max(names, key=len)]


def _cases() -> Iterator[Any]:
    for name in frameworks.ALL:
        marks = [] if name in frameworks.NEWEST else [pytest.mark.slow]
        for module in _modules(name):
            yield pytest.param(name, module, marks=marks, id=f"{name}:{module}")


def run(environment: str, program: str) -> subprocess.CompletedProcess[str]:
    python = frameworks.python_of(environment)
    if not python.exists():
        pytest.skip(f"no environment: python tests/frameworks.py {environment}")
    return subprocess.run(
        [python, "-c", program],
        env={"PYTHONPATH": str(frameworks.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("environment", "module"), list(_cases()))
def test_the_version_has_the_hooks_that_the_integration_needs(
    environment: str, module: str
) -> None:
    result = run(environment, f"import qqbot_session.integrations.{module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("environment", "change", "module", "sentence"),
    [
        (
            "botpy",
            "import botpy; del botpy.Client._bot_init",
            "botpy",
            "has no Client._bot_init(token): qqbot_session.integrations.botpy does not know this"
            " version",
        ),
        (
            "botpy",
            "import botpy; botpy.Client._schedule_event = lambda self, event: None",
            "botpy",
            "has no Client._schedule_event(coro, event_name): qqbot_session.integrations.botpy",
        ),
        (
            "nonebot",
            "from nonebot.adapters.qq import Adapter; Adapter._forward_ws = lambda self, bot: None",
            "nonebot",
            "has no Adapter._forward_ws(bot, ws_url, shard): qqbot_session.integrations.nonebot",
        ),
        (
            "agent-sdk",
            "from qqbot_agent_sdk import WSCallbacks\n"
            "del WSCallbacks.__dataclass_fields__['set_session']",
            "agent_sdk",
            "has no WSCallbacks.set_session: qqbot_session.integrations.agent_sdk",
        ),
    ],
)
def test_a_version_without_a_hook_fails_at_import_and_names_it(
    environment: str, change: str, module: str, sentence: str
) -> None:
    result = run(environment, f"{change}\nimport qqbot_session.integrations.{module}")
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert re.match(r"ImportError: [\w-]+ \d+\.\d[\d.]* has no ", last), last
    assert sentence in last


def test_what_is_installed_under_no_name_is_named_by_its_import() -> None:
    module = ModuleType("made_up")
    with pytest.raises(ImportError, match=r"this made_up has no made_up\.hook\(a\): ours"):
        require("made_up", module, {"hook": ("a",)}, "ours")
    kind = make_dataclass("Kind", ["a"])
    with pytest.raises(ImportError, match=r"this made_up has no Kind\.b, c: ours"):
        require_fields("made_up", kind, ["a", "b", "c"], "ours")


def test_importing_the_package_imports_no_integration() -> None:
    program = (
        "import sys, qqbot_session, qqbot_session.gateway, qqbot_session.shard\n"
        "names = ('botpy', 'nonebot', 'qqbot_agent_sdk', 'aiohttp', 'httpx', 'websockets')\n"
        "print([n for n in sys.modules if n.startswith('qqbot_session.integrations.')"
        " or n in names])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


CHECKED = """\
import botpy
from qqbot_session.integrations.botpy import SessionMixin, remember


class MyClient(SessionMixin, botpy.Client):
    pass


intents = botpy.Intents(public_messages=True)
client = MyClient(intents=intents, timeout=3, sessions="sessions", until="answered", base_url="")
client.run(appid="1", secret="2")
reveal_type(remember(botpy.Client(intents=intents)))
reveal_type(MyClient.start)


async def start():
    await client.start(app_id="1", secret="2")
    MyClient(intents=intents, timout=3)
    MyClient(intents=intents, until="answred")
"""


def test_botpys_own_signatures_stay_visible_to_type_checkers(directory: Path) -> None:
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed: it is in the group `lint`")
    directory.mkdir(parents=True)
    (directory / "checked.py").write_text(CHECKED)
    command = [pyright, "--pythonpath", sys.executable, "checked.py"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if "error while" in result.stderr:  # it fetches its program at the first use
        pytest.skip(result.stderr)
    said = result.stdout
    assert said.count(" - error: ") == 4
    assert 'No parameter named "app_id"' in said
    assert 'No parameter named "timout"' in said
    assert "Literal['answred']" in said
    assert 'Type of "remember(botpy.Client(intents=intents))" is "Client"' in said
    assert "(self: Client, appid: str, secret: str, ret_coro: bool = False)" in said


@pytest.mark.parametrize("fork", ["ymbotpy", "SuperQQBot", "pt_botpy"])
def test_a_fork_of_botpy_with_a_name_of_its_own_is_named(fork: str, directory: Path) -> None:
    (directory / fork).mkdir(parents=True)
    (directory / fork / "__init__.py").touch()
    program = "import sys; sys.modules['botpy'] = None; import qqbot_session.integrations.botpy"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{frameworks.ROOT}{os.pathsep}{directory}"},
        text=True,
        capture_output=True,
        check=False,
    )
    last = result.stderr.splitlines()[-1]
    assert last.endswith(
        f"is a fork of botpy with an import name of its own ({fork}):"
        " qqbot_session.integrations.botpy does not know it"
    )


def test_nonebot2_that_is_too_old_is_named() -> None:
    gone = "import nonebot.drivers; del nonebot.drivers.Timeout"
    result = run("nonebot", f"{gone}\nimport qqbot_session.integrations.nonebot")
    last = result.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"ImportError: nonebot2 2\.[\d.]+ is too old: qqbot_session\.integrations\.nonebot does not"
        r" know this version, it needs nonebot2 2\.4\.3 or later, and nonebot-adapter-qq 1\.6\.4 or"
        r" later",
        last,
    )


@pytest.mark.parametrize(
    ("module", "missing"),
    [("botpy", "botpy"), ("nonebot", "nonebot"), ("agent_sdk", "qqbot_agent_sdk")],
)
def test_without_its_framework_an_integration_names_the_extra(module: str, missing: str) -> None:
    """What is called `nonebot` on PyPI, for one, is another thing."""
    hidden = f"import sys; sys.modules[{missing!r}] = None; import qqbot_session.integrations."
    command = [sys.executable, "-c", hidden + module]
    said = subprocess.run(command, text=True, capture_output=True, check=False).stderr
    extra = module.replace("_", "-")
    assert said.splitlines()[-1].endswith(f'pip install "qqbot_session[{extra}]"')
