"""pytest's fixture `local_gateway`, there for whoever has the package installed.

    async def test_my_bot_answers(local_gateway):
        async with my_bot(api=local_gateway.api_url, token_url=local_gateway.token_url):
            await local_gateway.wait_for(lambda qq: qq.identifies)
            await local_gateway.emit("C2C_MESSAGE_CREATE", local_gateway.c2c_message("hello"))
            await local_gateway.wait_for(lambda qq: qq.sent)

It serves from a thread of its own, so that it needs no asyncio plugin, no mode and no loop of the
tests': fixtures and tests, plain or asynchronous, may use it.

Whoever has the package installed has this module imported by every `pytest`. So it lies beside the
package, imports nothing of it until a test asks for the fixture, and leaves its coverage whole.
`@pytest.mark.local_gateway(heartbeat_interval=0.5)` gives it what `LocalGateway` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qqbot_session.testing import LocalGateway


def pytest_configure(config: pytest.Config) -> None:
    line = "local_gateway(**settings): what the fixture `local_gateway` is made with"
    config.addinivalue_line("markers", line)


@pytest.fixture
def local_gateway(request: pytest.FixtureRequest) -> Iterator[LocalGateway]:
    """QQ on localhost, from a thread of its own: `qqbot_session.testing.LocalGateway`."""
    from qqbot_session.testing import LocalGateway

    marker = request.node.get_closest_marker("local_gateway")
    with LocalGateway(**(marker.kwargs if marker else {})).serving() as gateway:
        yield gateway
