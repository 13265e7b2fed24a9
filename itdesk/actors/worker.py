"""The worker: does jobs as long as any is due, each kind beside the others."""

from collections import Counter
from collections.abc import Sequence

from itdesk.actors.crew import Crew
from itdesk.desk.jobs import Jobs
from itdesk.runtime import trace
from itdesk.store.jobs import Held


class Worker(Crew[Held]):
    """Claims and runs whatever is due."""

    name = "worker"
    handle_timeout = 60.0

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self.period = float(jobs.settings.poll_seconds)
        # Every tick renews this, however long a job takes.
        self.handle_timeout = max(self.handle_timeout, 4 * self.period)
        self._jobs = jobs

    async def teardown(self) -> None:
        """Give back what was claimed and not finished; a stop is no fault of a job."""
        await self._jobs.release(counted=not self.mailbox.closed)

    async def take(self, *, ticked: bool) -> Sequence[Held]:
        """Return the jobs that are due and may run beside those that do; none while we stop."""
        if self.mailbox.closed:
            return []
        if ticked:
            await self._jobs.tidy()
        running = Counter(held.type for held in self.at_work)
        suspects = any(map(self._jobs.is_suspect, self.at_work))
        return await self._jobs.claim(running, suspects=not suspects)

    async def work(self, one: Held) -> None:
        """Make one attempt at a job."""
        with trace.resumed(one.trace):
            await self._jobs.run(one)
