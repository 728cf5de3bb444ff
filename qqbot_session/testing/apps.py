"""The apps that the token endpoint knows: their secrets, tokens and session starts. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

from .settings import Settings

_OLD_TOKEN = 60.0  # seconds before its end at which a token is replaced; bot-docs, api-use.md


@dataclass(slots=True)
class _App:
    secret: str
    token: str = ""
    expires_at: float = 0.0
    starts: int = 0
    counted_since: float | None = None  # the budget's day began with its first start
    recent: deque[float] = field(default_factory=deque)


class Apps:
    """Give tokens and session starts, and keep count. Times are those of `clock`."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self._apps: dict[str, _App] = {}
        self._tokens: dict[str, tuple[str, float]] = {}  # to the app and the token's end
        self.add(settings.app_id, settings.client_secret)

    def add(self, app_id: str, secret: str) -> None:
        self._apps[app_id] = _App(secret)

    def grant(self, app_id: str, secret: str) -> tuple[str, float] | None:
        """Return the app's token and its remaining seconds; `None` = wrong id or secret."""
        app = self._apps.get(app_id)
        if app is None or app.secret != secret:
            return None
        now, lifetime = self._clock(), self._settings.token_lifetime
        if app.expires_at - now <= min(_OLD_TOKEN, lifetime / 2):
            app.token, app.expires_at = uuid4().hex, now + lifetime
            self._tokens[app.token] = (app_id, app.expires_at)
        return app.token, app.expires_at - now

    def find(self, token: str) -> tuple[str | None, bool]:
        """Return whose token it is, `None` = nobody's, and whether it is still good."""
        app_id, expires_at = self._tokens.get(token, (None, 0.0))
        return app_id, expires_at > self._clock()

    def revoke(self) -> None:
        """End all tokens."""
        for token, (app_id, _) in self._tokens.items():
            self._tokens[token] = (app_id, 0.0)
        for app in self._apps.values():
            app.expires_at = 0.0

    def remaining(self, app_id: str) -> int:
        """Return how many session starts are left until the budget is reset."""
        return max(0, self._settings.session_starts - self._current(app_id).starts)

    def reset_after(self, app_id: str) -> float:
        """Return the seconds until the budget is reset."""
        since = self._current(app_id).counted_since
        elapsed = 0.0 if since is None else self._clock() - since
        return self._settings.session_reset - elapsed

    def too_fast(self, app_id: str) -> bool:
        """Return whether another start now is one too many for `max_concurrency`."""
        window, recent = self._settings.identify_window, self._apps[app_id].recent
        if window is None:
            return False
        while recent and recent[0] <= self._clock() - window:
            recent.popleft()
        return len(recent) >= self._settings.max_concurrency

    def spend(self, app_id: str) -> None:
        """Count a session start."""
        app, now = self._current(app_id), self._clock()
        app.starts += 1
        app.recent.append(now)
        if app.counted_since is None:
            app.counted_since = now

    def _current(self, app_id: str) -> _App:
        app, horizon = self._apps[app_id], self._clock() - self._settings.session_reset
        if app.counted_since is not None and app.counted_since <= horizon:
            app.starts, app.counted_since = 0, None
        return app
