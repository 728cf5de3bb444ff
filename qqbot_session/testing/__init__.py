"""QQ on localhost, for the tests of any bot: `LocalGateway`. See `gateway` for the rules.

`python -m qqbot_session.testing` runs one by hand. Needs `pip install "qqbot_session[testing]"`;
`storage_contract` beside it needs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .gateway import LocalGateway
    from .payloads import MALFORMED
    from .records import Call, Client, Delivery, Heartbeat, Identify, Resume, Sent

__all__ = [
    "MALFORMED",
    "Call",
    "Client",
    "Delivery",
    "Heartbeat",
    "Identify",
    "LocalGateway",
    "Resume",
    "Sent",
]


def __getattr__(name: str) -> Any:
    """Import aiohttp only for those who ask for the gateway."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import gateway, payloads

    return getattr(payloads if name == "MALFORMED" else gateway, name)
