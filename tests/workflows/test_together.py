"""Any number of daemons: one run for each rule and event, whoever gets there first."""

import asyncio
from contextlib import AsyncExitStack

from itdesk.desk.automation import Look
from itdesk.store import events, workflow_runs
from tests.support.desk import bench_on
from tests.workflows.ruled import Ruled


async def test_many_workers_at_one_event_act_once(ruled: Ruled) -> None:
    """Four nodes run the same rule for the same event at the same time: one effect, one log."""
    rule = await ruled.rule("ticket_created", {"add_comment": "once"})
    async with AsyncExitStack() as stack:
        nodes = [
            (await stack.enter_async_context(bench_on(ruled.desk.db.url))).desk for _ in range(4)
        ]
        for _ in range(5):
            ticket = await ruled.ticket()
            async with ruled.desk.db.connection() as conn:
                entry = await workflow_runs.last_event(conn, ticket.id, ())
                assert entry is not None
                cause = await workflow_runs.cause(conn, entry.event.id, deepest=20)
                assert await events.get(conn, entry.event.id) == entry
            look = Look(rule.id, entry, ticket.id, cause)
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(node.automation.run(look))
                    group.create_task(node.automation.run(look))
            assert [said.body for said in await ruled.comments(ticket)] == ["once"]
            assert len(await ruled.runs(rule, ticket=ticket.key)) == 1


async def test_a_run_that_comes_second_is_undone(ruled: Ruled) -> None:
    """The log is what fences: logged by somebody else meanwhile, whatever was done here is not."""
    rule = await ruled.rule("ticket_created", {"add_comment": "twice"})
    ticket = await ruled.ticket()
    async with ruled.desk.db.connection() as conn:
        entry = await workflow_runs.last_event(conn, ticket.id, ())
        assert entry is not None
        cause = await workflow_runs.cause(conn, entry.event.id, deepest=20)
    await ruled.sql(
        "CREATE FUNCTION faster() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF pg_trigger_depth() = 1 THEN INSERT INTO workflow_runs (rule_id, event_id, matched)"
        " VALUES (NEW.rule_id, NEW.event_id, false); END IF; RETURN NEW; END $$"
    )
    await ruled.sql(
        "CREATE TRIGGER faster BEFORE INSERT ON workflow_runs FOR EACH ROW"
        " EXECUTE FUNCTION faster()"
    )
    await ruled.desk.automation.run(Look(rule.id, entry, ticket.id, cause))
    assert await ruled.comments(ticket) == [] and await ruled.runs(rule) == []
