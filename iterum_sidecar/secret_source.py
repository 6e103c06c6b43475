"""What to log in with at broker and store, read again while the sidecar is at work.

It is read again only when the broker or the store refuses what was read before. Files may change between two reads:
Kubernetes swaps all of a secret at once by a symlink, but nobody reads them all at once. An access key of before beside a
secret key of after is refused like any wrong pair, and reading again mends it; so nothing is done here against that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iterum_sidecar.amqp.parameters import ConnectionParameters
from iterum_sidecar.exit_codes import BadConfiguration
from iterum_sidecar.stores.signature import Credentials
from iterum_sidecar.telemetry.logs import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from iterum_sidecar.settings import Settings

__all__ = ["SecretSource"]

_log = get_log(__name__)


class SecretSource:
    """Logins for broker and store, by the settings and by files that may change.

    `read` reads the settings anew from the same environment. What cannot be read at some later moment (a file that is
    gone, or half written) is told, and what was read before stays.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._told: list[str] = []

    def store_credentials(self) -> Credentials:
        """Return the keys of the store as they are now, with the session token that belongs to them."""
        return _credentials(self._read_again())

    def broker_parameters(self) -> ConnectionParameters:
        """Return where the broker is and how to log in, as it is now."""
        settings = self._read_again()
        return ConnectionParameters.from_url(
            settings.broker_url, server_name=settings.broker_server_name
        )

    def _read_again(self) -> Settings:
        before = self._settings
        try:
            now = self._read()
        except BadConfiguration as error:
            if error.problems != self._told:
                self._told = error.problems
                _log.warning(
                    "secrets cannot be read again; those from before are kept",
                    problems=error.problems,
                )
            return before
        self._settings, self._told = now, []
        if _credentials(now) != _credentials(before):
            _log.info("other keys for the store have been read")
        if now.broker_url != before.broker_url:
            _log.info("another URL of the broker has been read")
        return now


def _credentials(settings: Settings) -> Credentials:
    return Credentials(
        settings.store_access_key, settings.store_secret_key, settings.s3_session_token or None
    )
