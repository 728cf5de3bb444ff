"""Lets AstrBot's QQ bots (`qq_official`) resume their gateway sessions after a restart.

Rules:

* Nothing of AstrBot is patched. Each bot's botpy client gets `remember` right after AstrBot has
  loaded its platform, before the client logs in.
* AstrBot puts messages into a queue, so a message counts as handled when its answer is out.
* The sessions are kept in AstrBot's data folder, which outlives a container.
* A bot that resumes already, as under `qqbot-session run`, stays as it is. What cannot be made to
  resume is one line in AstrBot's log, and runs as it would alone.
"""

from __future__ import annotations

from typing import Any

from astrbot.api import AstrBotConfig, logger
from astrbot.api.event import filter
from astrbot.api.star import Context, Star, StarTools

from qqbot_session.answers import Answers
from qqbot_session.integrations.botpy import SessionMixin, remember

NAME = "astrbot_plugin_qqbot_session"
FIRST = 1_000_000  # a priority before other plugins: while they wait, the client would log in


class SessionPlugin(Star):
    """The plugin, whose settings are those of `_conf_schema.json`."""

    def __init__(self, context: Context, config: AstrBotConfig | None = None) -> None:
        super().__init__(context)
        self._config: dict[str, Any] = config or {}

    async def initialize(self) -> None:
        """Name the bots that logged in before the plugin was installed or enabled."""
        self._remember_all()

    @filter.on_platform_loaded(priority=FIRST)
    async def on_platform_loaded(self) -> None:
        """Make the bots of the platform resume that AstrBot has just loaded."""
        self._remember_all()

    def _remember_all(self) -> None:
        for platform in self.context.platform_manager.get_insts():
            client = getattr(platform, "client", None)
            if platform.meta().name == "qq_official" and not isinstance(client, SessionMixin):
                self._remember(platform.meta().id, client)

    def _remember(self, bot: str, client: Any) -> None:
        sessions = self._config.get("sessions") or str(StarTools.get_data_dir(NAME) / "sessions")
        try:
            answers = Answers(self._config.get("answer_timeout", 60.0))
            remember(client, sessions, until=answers, grace=self._config.get("grace", 5.0))
        except RuntimeError:
            logger.warning(
                "[qqbot_session] 机器人「%s」在插件启用之前就已登录：重启 AstrBot，"
                "或在“机器人”页面里停用再启用它，之后会话才会保留",
                bot,
            )
        except (TypeError, ValueError) as error:
            logger.error("[qqbot_session] 机器人「%s」的会话不会保留：%s", bot, error)
