"""QQ on localhost, for the tests of any bot: `LocalGateway`. See `gateway` for the rules.

`python -m qqbot_session.testing` runs one by hand. Needs `pip install "qqbot_session[testing]"`.
"""

from .gateway import Client, Delivery, Heartbeat, Identify, LocalGateway, Resume

__all__ = ["Client", "Delivery", "Heartbeat", "Identify", "LocalGateway", "Resume"]
