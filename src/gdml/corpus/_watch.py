"""Whether holders of leases are dead."""

import time
from dataclasses import dataclass, field

from ._alive import Process, is_gone


@dataclass
class Watch:
    """Judges holders of leases by their processes where these can be seen, else by their heartbeat.

    A heartbeat is the time at which the file of the lease was last changed. It is only compared with earlier looks at
    the same file, by this process's own clock, since clocks of machines differ.

    Parameters
    ----------
    stale_s
        Seconds without a heartbeat after which a holder counts as dead.
    known_dead
        Tokens of holders that another watch judged dead.
    """

    stale_s: float
    known_dead: tuple[str, ...] = ()
    _looks: dict[str, tuple[int, float]] = field(default_factory=dict)

    def dead(self, token: str, process: Process, changed: int) -> bool:
        """Judge a holder.

        Parameters
        ----------
        token
            Of its lease.
        process
            The holder.
        changed
            When the file of the lease was last changed, ns.
        """
        return token in self.known_dead or is_gone(process) is True or self.silent(token, changed)

    def silent(self, name: str, changed: int) -> bool:
        """Whether a file has not changed for ``stale_s`` seconds, in this process's sight.

        Parameters
        ----------
        name
            Name of the lease.
        changed
            When it was last changed, ns.
        """
        now = time.monotonic()
        before, since = self._looks.get(name, (None, now))
        if before != changed:
            self._looks[name] = changed, now
            return False
        return now - since > self.stale_s
