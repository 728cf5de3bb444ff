"""What QQ sends: sample messages, which intent asks for which event, and frames that are broken.

The samples carry what the strictest client demands (the models of nonebot-adapter-qq 1.7.3),
under the names of bot-docs, message/event.md and interaction.md.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

_BEIJING = timezone(timedelta(hours=8))

# bot-docs, event-emit.md; 18 and 19 are botpy's flags.py, 24 the live page of 2026-07-22. Groups'
# GROUP_MESSAGE_CREATE is seen under 25.
_EVENTS = {
    0: "GUILD_CREATE GUILD_UPDATE GUILD_DELETE CHANNEL_CREATE CHANNEL_UPDATE CHANNEL_DELETE",
    1: "GUILD_MEMBER_ADD GUILD_MEMBER_UPDATE GUILD_MEMBER_REMOVE",
    9: "MESSAGE_CREATE MESSAGE_DELETE",
    10: "MESSAGE_REACTION_ADD MESSAGE_REACTION_REMOVE",
    12: "DIRECT_MESSAGE_CREATE DIRECT_MESSAGE_DELETE",
    18: "OPEN_FORUM_THREAD_CREATE OPEN_FORUM_THREAD_UPDATE OPEN_FORUM_THREAD_DELETE"
    " OPEN_FORUM_POST_CREATE OPEN_FORUM_POST_DELETE OPEN_FORUM_REPLY_CREATE"
    " OPEN_FORUM_REPLY_DELETE",
    19: "AUDIO_OR_LIVE_CHANNEL_MEMBER_ENTER AUDIO_OR_LIVE_CHANNEL_MEMBER_EXIT",
    24: "GROUP_MEMBER_ADD GROUP_MEMBER_REMOVE",
    25: "C2C_MESSAGE_CREATE FRIEND_ADD FRIEND_DEL C2C_MSG_REJECT C2C_MSG_RECEIVE"
    " GROUP_AT_MESSAGE_CREATE GROUP_MESSAGE_CREATE GROUP_ADD_ROBOT GROUP_DEL_ROBOT"
    " GROUP_MSG_REJECT GROUP_MSG_RECEIVE",
    26: "INTERACTION_CREATE",
    27: "MESSAGE_AUDIT_PASS MESSAGE_AUDIT_REJECT",
    28: "FORUM_THREAD_CREATE FORUM_THREAD_UPDATE FORUM_THREAD_DELETE FORUM_POST_CREATE"
    " FORUM_POST_DELETE FORUM_REPLY_CREATE FORUM_REPLY_DELETE FORUM_PUBLISH_AUDIT_RESULT",
    29: "AUDIO_START AUDIO_FINISH AUDIO_ON_MIC AUDIO_OFF_MIC",
    30: "AT_MESSAGE_CREATE PUBLIC_MESSAGE_DELETE",
}
_BIT_OF = {name: bit for bit, names in _EVENTS.items() for name in names.split()}

_HUGE = 5_000_000  # bytes; above aiohttp's limit of 4 MiB and websockets' of 1 MiB

MALFORMED = ("not json", "not an object", "no op", "number as text", "data missing", "binary")
"""The kinds of `malformed_frame`, without the huge one."""


def asks_for(intents: int, event_type: str) -> bool:
    """Return whether an event goes to a session with these intents; an unknown one always does."""
    bit = _BIT_OF.get(event_type)
    return bit is None or bool(intents >> bit & 1)


def malformed_frame(kind: str) -> str | bytes:
    """Return a frame that must not crash a client: one of `MALFORMED`, or `"huge"`, of 5 MB."""
    if kind == "huge":
        return dump({"op": 99, "d": "x" * _HUGE})
    frames: dict[str, str | bytes] = {
        "not json": "<html>502 Bad Gateway</html>",
        "not an object": "[]",
        "no op": '{"d":{}}',
        "number as text": '{"op":0,"s":"5","t":"C2C_MESSAGE_CREATE","d":{}}',
        "data missing": '{"op":10}',
        "binary": b"\x00\xff\xfe not text",
    }
    if kind not in frames:
        raise ValueError(f"not one of {[*MALFORMED, 'huge']}: {kind!r}")
    return frames[kind]


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def now() -> str:
    """Return the time as QQ writes it, `2026-11-25T17:30:00+08:00`."""
    return datetime.now(_BEIJING).isoformat(timespec="seconds")


def message_id() -> str:
    return f"ROBOT1.0_{uuid4().hex}"


def message(content: str, **fields: object) -> dict[str, Any]:
    return {"id": message_id(), "content": content, "timestamp": now(), **fields}


class Samples:
    """The `d` of the events that bots live on, each with a fresh id."""

    @staticmethod
    def c2c_message(content: str, *, user_openid: str = "U0") -> dict[str, Any]:
        """Return the `d` of a C2C_MESSAGE_CREATE."""
        return message(content, author={"id": user_openid, "user_openid": user_openid})

    @staticmethod
    def group_at_message(
        content: str, *, group_openid: str = "G0", member_openid: str = "M0"
    ) -> dict[str, Any]:
        """Return the `d` of a GROUP_AT_MESSAGE_CREATE or GROUP_MESSAGE_CREATE."""
        author = {
            "id": member_openid,
            "member_openid": member_openid,
            "member_role": "member",
            "bot": False,
        }
        return message(content, author=author, group_id=group_openid, group_openid=group_openid)

    @staticmethod
    def at_message(
        content: str, *, guild_id: str = "1", channel_id: str = "2", user_id: str = "3"
    ) -> dict[str, Any]:
        """Return the `d` of an AT_MESSAGE_CREATE or MESSAGE_CREATE, a guild channel's."""
        return _guild_message(content, guild_id, channel_id, user_id)

    @staticmethod
    def direct_message(
        content: str, *, guild_id: str = "4", channel_id: str = "5", user_id: str = "3"
    ) -> dict[str, Any]:
        """Return the `d` of a DIRECT_MESSAGE_CREATE; `guild_id` is the conversation's own."""
        fields = _guild_message(content, guild_id, channel_id, user_id)
        return fields | {"direct_message": True, "src_guild_id": "1"}

    @staticmethod
    def interaction(
        button_data: str, *, group_openid: str | None = None, openid: str = "U0"
    ) -> dict[str, Any]:
        """Return the `d` of an INTERACTION_CREATE: a button, in a group or else a C2C chat."""
        place: dict[str, Any] = {"scene": "c2c", "chat_type": 2, "user_openid": openid}
        if group_openid is not None:
            place = {"scene": "group", "chat_type": 1, "group_openid": group_openid}
            place["group_member_openid"] = openid
        resolved = {"button_id": "1", "button_data": button_data}
        return {
            "id": str(uuid4()),
            "type": 11,
            "version": 1,
            "timestamp": now(),
            "application_id": "102000000",
            "data": {"type": 11, "resolved": resolved},
            **place,
        }


def _guild_message(content: str, guild_id: str, channel_id: str, user_id: str) -> dict[str, Any]:
    author = {"id": user_id, "username": "a member", "avatar": "", "bot": False}
    member = {"nick": "a member", "roles": ["1"], "joined_at": now()}
    place = {"guild_id": guild_id, "channel_id": channel_id}
    return message(content, author=author, member=member, seq=1, seq_in_channel="1", **place)
