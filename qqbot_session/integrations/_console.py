"""What a framework's own console says about a line, in its language and through its logger.

Rules:

* A person who watches the console sees every READY, Resume, Identify (and why), close, failed try
  and refusal. Nobody has to set up a logger for it.
* The logger `qqbot_session` gets its lines, too, once it has a handler or a level of its own.
* No token, and no content of an event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from ..gateway import CloseRule, Dispatch, Event, Hello, Next
from ..judging import LoadReason
from ..logs import LOG
from ..loop.log import ShardLog
from ..store import LoadDetails

Language: TypeAlias = Literal["en", "zh"]
Tell: TypeAlias = Callable[[int, str, int], object]

_LINES: dict[Language, dict[str, str]] = {
    "en": {
        "identify": "{account}: starting a new session ({why})",
        "resume": "{account}: resuming the session from number {seq}",
        "ready": "{account}: ready with a new session",
        "resumed": "{account}: session resumed from number {seq}, caught up on {missed} event(s)",
        "closed": "{account}: connection closed{code}: {meaning} Next: {next} in {wait:.1f} s",
        "no_line": "{account}: cannot connect to QQ yet, trying again in {wait:.1f} s: {error}",
        "grace": "{account}: {values} handler(s) did not finish within {grace:g} s:"
        " their events will come again",
        "refused": "QQ refused the bot, which does not try again: {error}",
        "own_connect": "this client's own bot_connect is not called: qqbot_session connects",
        "login": "cannot log in to QQ yet, trying again in {wait:.0f} s: {error}",
    },
    "zh": {
        "identify": "[botpy] {account}：新建会话（{why}）",
        "resume": "[botpy] {account}：正在恢复会话，从序号 {seq} 继续",
        "ready": "[botpy] 机器人「{name}」启动成功！{account}：新会话已建立",
        "resumed": "[botpy] 机器人「{name}」恢复会话成功！{account}：从序号 {seq} 继续，"
        "补收了 {missed} 个事件",
        "closed": "[botpy] {account}：连接断开{code}，{wait:.1f} 秒后{next}",
        "no_line": "[botpy] {account}：暂时连不上 QQ，{wait:.1f} 秒后重试：{error}",
        "grace": "[botpy] {account}：{values} 个处理函数没能在 {grace:g} 秒内结束，"
        "对应的事件会重新送达",
        "refused": "[botpy] QQ 拒绝了机器人，不再重试：{error}",
        "own_connect": "[botpy] client 自己的 bot_connect 不会被调用：由 qqbot_session 负责连接",
        "login": "[botpy] 暂时无法登录 QQ，{wait:.0f} 秒后重试：{error}",
    },
}
_NEXT: dict[Language, dict[str, str]] = {
    "en": {each.value: each.value for each in Next},
    "zh": {"resume": "恢复会话", "identify": "新建会话", "stop": "停止"},
}
_CODE = {"en": " with code {}", "zh": "（代码 {}）"}
_WHY: dict[Language, dict[LoadReason | None, str]] = {
    "en": {
        None: "there is none that can be resumed",
        LoadReason.ABSENT: "none was kept",
        LoadReason.NO_SESSION: "the last one was given up",
        LoadReason.EXPIRED: "the last one has expired, {age:.0f} s without a sign of life",
        LoadReason.OTHER_APP: "the record belongs to another app id",
        LoadReason.OTHER_SHARD: "the record belongs to another shard",
        LoadReason.OTHER_INTENTS: "the bot's intents have changed",
        LoadReason.CORRUPT: "the record is damaged",
        LoadReason.FOREIGN: "the record is not ours",
        LoadReason.UNREADABLE: "the record cannot be read",
    },
    "zh": {
        None: "没有可以恢复的会话",
        LoadReason.ABSENT: "没有保存过会话",
        LoadReason.NO_SESSION: "上一个会话已作废",
        LoadReason.EXPIRED: "上一个会话已过期，{age:.0f} 秒没有动静",
        LoadReason.OTHER_APP: "记录属于另一个 app id",
        LoadReason.OTHER_SHARD: "记录属于另一个分片",
        LoadReason.OTHER_INTENTS: "订阅的事件（intents）变了",
        LoadReason.CORRUPT: "记录已损坏",
        LoadReason.FOREIGN: "记录不是本库写的",
        LoadReason.UNREADABLE: "记录读不出来",
    },
}
_ENDED = {"en": "the last connection ended{}", "zh": "上一次连接断开{}，会话已失效"}


class Console(ShardLog):
    """The log of one shard's line, for people as well.

    Args:
        account_id: the shard's account.
        language: the framework's.
        tell: writes a line to the framework's log, given its level, itself, and the stack level of
            who speaks, as `logging` has it.
        name: returns the bot's name.
        loaded: what the store found for the account; `None` = not known.
    """

    def __init__(
        self,
        account_id: str,
        language: Language,
        tell: Tell,
        *,
        name: Callable[[], object] = lambda: "",
        loaded: LoadDetails | None = None,
    ) -> None:
        super().__init__(account_id)
        self._language: Language = language
        self._tell, self._name = tell, name
        self._missed = 0  # events, since Hello
        self._seq: object = None  # that was resumed from
        self._error: object = None  # of a try that opened no line
        reason = None if loaded is None else loaded.reason
        age = 0.0 if loaded is None else loaded.age or 0.0
        self._why = _WHY[language].get(reason, _WHY[language][None]).format(age=age)

    def count(self, event: Event) -> None:
        """Count what a Resume brings; for `ShardRunner(observe=...)`."""
        if isinstance(event, Hello):
            self._missed = 0
        elif isinstance(event, Dispatch) and event.replayed and not event.already_handled:
            self._missed += 1

    def closed(self, code: int | None, rule: CloseRule) -> None:
        """Log how the line ended, and remember it as the reason for what follows."""
        super().closed(code, rule)
        self._why = _ENDED[self._language].format(self._code(code))

    def _say(
        self, level: int, text: str, *values: object, exc_info: Any = None, **fields: object
    ) -> None:
        if LOG.handlers or LOG.level:
            super()._say(level, text, *values, exc_info=exc_info, **fields)
        reason = str(fields.get("reason", ""))
        if reason == "resume":
            self._seq = fields["seq"]
        if reason == "no_line":
            (self._error,) = values  # told with the wait that follows
            return
        if fields.get("next") == Next.STOP.value:
            return  # whoever runs the shard tells of the refusal
        if reason == "closed" and self._error is not None:
            reason, level = "no_line", logging.WARNING
        if text_here := _LINES[self._language].get(reason):
            self._tell(level, text_here.format_map(self._words(values, fields)), 3)
        elif reason not in ("connected", "closing", "broken"):
            self._tell(level, f"{self._account_id}: {text % values}", 3)
        if reason == "no_line":
            self._error = None

    def _words(self, values: tuple[object, ...], fields: dict[str, object]) -> dict[str, object]:
        following = _NEXT[self._language].get(str(fields.get("next")), "")
        return fields | {
            "account": self._account_id,
            "name": self._name(),
            "why": self._why,
            "seq": self._seq,
            "missed": self._missed,
            "code": self._code(fields.get("code")),
            "meaning": values[1] if len(values) > 1 else "",
            "next": following,
            "error": self._error,
            "values": ", ".join(map(str, values)),
        }

    def _code(self, code: object) -> str:
        return "" if code is None else _CODE[self._language].format(code)


def console_line(language: Language, name: str, **words: object) -> str:
    """Return a line that is not about one shard: `login`, `refused`, `own_connect`."""
    return _LINES[language][name].format(**words)
