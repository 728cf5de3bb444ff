"""The plugin for AstrBot, with a stand-in for AstrBot; `test_applications` runs the real one."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

botpy = pytest.importorskip("botpy")
remember = pytest.importorskip("qqbot_session.integrations.botpy").remember

MAIN = (
    Path(__file__).parent.parent / "plugins" / "astrbot_plugin_qqbot_session" / "main.py"
).resolve()
Load = Callable[..., Any]


class Star:
    def __init__(self, context: Any) -> None:
        self.context = context


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Return what loads the plugin as AstrBot does, given its settings and the platforms."""
    logger = logging.getLogger("astrbot")
    tools = SimpleNamespace(get_data_dir=lambda name: tmp_path / "plugin_data" / name)
    modules = {
        "astrbot": {},
        "astrbot.api": {"AstrBotConfig": dict, "logger": logger},
        "astrbot.api.event": {"filter": SimpleNamespace(on_platform_loaded=hook)},
        "astrbot.api.star": {"Context": object, "Star": Star, "StarTools": tools},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    def load(platforms: list[Any], config: dict[str, Any] | None = None) -> Any:
        manager = SimpleNamespace(get_insts=lambda: platforms)
        plugin = runpy.run_path(str(MAIN))["SessionPlugin"]
        return plugin(SimpleNamespace(platform_manager=manager), config)

    return load


def hook(priority: int) -> Callable[[Any], Any]:
    return lambda function: function


def platform(kind: str = "qq_official") -> Any:
    client = botpy.Client(intents=botpy.Intents.none(), bot_log=None, ext_handlers=False)
    return SimpleNamespace(client=client, meta=lambda: SimpleNamespace(name=kind, id="qq"))


async def test_every_official_bot_resumes_from_astrbots_data_folder(
    load: Load, tmp_path: Path
) -> None:
    first, second, other = platform(), platform(), platform("telegram")
    await load([first, second, other]).on_platform_loaded()
    folder = tmp_path / "plugin_data" / "astrbot_plugin_qqbot_session" / "sessions"
    for each in (first, second):
        assert each.client._qqbot_sessions == str(folder)
        assert "timeout=60 " in repr(each.client._qqbot_until)
    assert first.client._qqbot_until is not second.client._qqbot_until
    assert type(other.client) is botpy.Client


async def test_its_settings_say_where_and_how_long(load: Load) -> None:
    bot = platform()
    settings = {"sessions": "sqlite:s.db", "answer_timeout": 300, "grace": 20.0}
    await load([bot], settings).on_platform_loaded()
    assert bot.client._qqbot_sessions == "sqlite:s.db"
    assert bot.client._qqbot_grace == 20.0
    assert "timeout=300 " in repr(bot.client._qqbot_until)


async def test_a_wrong_setting_is_one_line_and_the_bot_runs_as_it_would_alone(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    bot = platform()
    await load([bot], {"answer_timeout": -1.0}).on_platform_loaded()
    assert type(bot.client) is botpy.Client
    (record,) = caplog.records
    assert "-1.0" in record.getMessage()


async def test_a_bot_that_has_logged_in_already_is_named_when_the_plugin_is_installed(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    bot = platform()
    bot.client._connection = object()
    await load([bot]).initialize()
    assert type(bot.client) is botpy.Client
    (record,) = caplog.records
    assert "「qq」" in record.getMessage()


async def test_a_bot_that_resumes_already_keeps_its_storage(load: Load) -> None:
    bot = platform()
    remember(bot.client, "where run put them")
    plugin = load([bot])
    await plugin.initialize()
    await plugin.on_platform_loaded()
    assert bot.client._qqbot_sessions == "where run put them"
