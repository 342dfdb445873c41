"""Each rule of the fleet by one example: who starts, who falls, who is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torpor.serving.actions import Action, End, Grant, Refuse, Sleep, Start, Wake
from torpor.serving.fleet import Fleet
from torpor.serving.making_room import Need, falls_for
from torpor.serving.sizes import Budget, Room, Size, Taken
from torpor.serving.starting import PATIENCE_S
from torpor.serving.states import Replica
from torpor.serving.terms import Terms, wanted_replicas

if TYPE_CHECKING:
    from torpor.serving.states import Kind

GB = 1 << 30
MODEL = Size(4 * GB, (40 * GB,))
ASLEEP = Size(44 * GB, (GB,))
TERMS = Terms(name="a", idle_s=10.0, capture="never", gpu_count=1, size=MODEL, deadline_s=60.0)


def fleet_of(*names: str, host: int | None = 100 * GB, gpus: int = 1, **changes: object) -> Fleet:
    """Deployments of 40 GB of GPU memory each on GPUs of 70 GB: one at a time on each."""
    fleet = Fleet(Budget(host, (70 * GB,) * gpus))
    for name in names:
        fleet.put(replace(TERMS, name=name, **changes), asleep=ASLEEP)  # type: ignore[arg-type]
    return fleet


def started(fleet: Fleet, name: str, now: float, *, kind: Kind = "restored") -> Replica:
    """A replica that serves, and that a request asked for which is over."""
    assert fleet.ask(name, now) is not None
    (begun,) = [action for action in fleet.decide(now) if isinstance(action, Start | Wake)]
    fleet.serves(begun.replica, kind, 1.0, now)
    (granted,) = fleet.decide(now)
    assert isinstance(granted, Grant)
    fleet.release(granted.replica, now)
    return begun.replica


def kinds(actions: list[Action]) -> list[tuple[str, str]]:
    """What is done to whom."""
    return [
        (
            type(action).__name__,
            action.waiter.deployment if isinstance(action, Grant | Refuse) else action.replica.deployment,
        )
        for action in actions
    ]


def test_a_hundred_requests_at_once_cause_one_start_and_are_granted_in_order() -> None:
    """Up to the most of the one replica; the others follow as requests end."""
    fleet = fleet_of("a", target=10, most_requests=30)
    waiters = [fleet.ask("a", 0.0) for _ in range(100)]
    (start,) = fleet.decide(0.0)
    assert isinstance(start, Start)
    assert fleet.decide(5.0) == []
    fleet.serves(start.replica, "restored", 5.0, 5.0)
    granted = [action.waiter for action in fleet.decide(5.0) if isinstance(action, Grant)]
    assert granted == waiters[:30]
    fleet.release(start.replica, 6.0)
    assert [action.waiter for action in fleet.decide(6.0) if isinstance(action, Grant)] == waiters[30:31]


def test_a_model_that_nobody_waits_for_any_more_is_not_started() -> None:
    """Its client left while another deployment made room."""
    fleet = fleet_of("a", "b")
    replica = started(fleet, "a", 0.0)
    waiter = fleet.ask("b", 1.0)
    assert waiter is not None
    assert kinds(fleet.decide(1.0)) == [("Sleep", "a")]
    fleet.leave(waiter)
    fleet.sleeps(replica, ASLEEP, 2.0)
    assert fleet.decide(2.0) == []


def test_idle_time_lets_a_deployment_fall_state_by_state() -> None:
    """Serving, asleep, on disk: ten seconds each."""
    fleet = fleet_of("a")
    replica = started(fleet, "a", 0.0)
    assert fleet.decide(9.9) == []
    assert fleet.next_time(9.9) == 10.0
    assert kinds(fleet.decide(10.0)) == [("Sleep", "a")]
    fleet.sleeps(replica, ASLEEP, 11.0)
    assert fleet.state("a") == "asleep"
    assert fleet.next_time(11.0) == 21.0
    assert kinds(fleet.decide(21.0)) == [("End", "a")]
    fleet.gone(replica, 22.0)
    assert fleet.state("a") == "on disk"
    assert fleet.next_time(22.0) == float("inf")


def test_a_replica_that_cannot_be_put_to_sleep_twice_in_a_row_ends() -> None:
    """Its engine works on for clients that have left. One failure may pass; a sleep that succeeds starts the count again."""
    fleet = fleet_of("a")
    replica = started(fleet, "a", 0.0)
    for now in (10.0, 31.0):
        assert kinds(fleet.decide(now)) == [("Sleep", "a")]
        fleet.serves_on(replica, now + 1.0)
        if now == 10.0:
            assert (replica.open, fleet.decide(now + 1.0)) == (True, [])
            assert kinds(fleet.decide(21.0)) == [("Sleep", "a")]
            fleet.sleeps(replica, ASLEEP, 21.0)
            fleet.ask("a", 21.0)
            fleet.decide(21.0)
            fleet.serves(replica, "woken", 0.1, 21.0)
            (granted,) = fleet.decide(21.0)
            assert isinstance(granted, Grant)
            fleet.release(replica, 21.0)
    assert kinds(fleet.decide(42.0)) == [("Sleep", "a")]
    fleet.serves_on(replica, 43.0)
    fleet.ask("a", 43.0)
    assert not replica.open
    assert kinds(fleet.decide(43.0)) == [("End", "a")]
    fleet.gone(replica, 44.0)
    assert kinds(fleet.decide(44.0)) == [("Start", "a")]


def test_one_that_is_kept_asleep_stays_asleep_until_somebody_needs_its_memory() -> None:
    """Idle time does not end it. The budget does."""
    fleet = fleet_of("a", "b", host=50 * GB, keep="asleep")
    replica = started(fleet, "a", 0.0)
    fleet.decide(10.0)
    fleet.sleeps(replica, ASLEEP, 10.0)
    assert fleet.decide(1000.0) == []
    fleet.ask("b", 1000.0)
    assert kinds(fleet.decide(1000.0)) == [("Start", "b")]
    fleet.put(replace(TERMS, name="c", size=Size(8 * GB, (20 * GB,))))
    fleet.ask("c", 1001.0)
    assert kinds(fleet.decide(1001.0)) == [("End", "a")]


def test_an_engine_that_cannot_sleep_falls_to_disk() -> None:
    """A sleep would free nothing."""
    fleet = fleet_of("a", can_sleep=False)
    started(fleet, "a", 0.0)
    assert kinds(fleet.decide(10.0)) == [("End", "a")]


def test_one_without_room_in_host_memory_falls_to_disk() -> None:
    """Asleep it would need 44 GB of 30."""
    fleet = fleet_of("a", host=30 * GB)
    started(fleet, "a", 0.0)
    assert kinds(fleet.decide(10.0)) == [("End", "a")]


def test_the_least_recently_used_makes_room() -> None:
    """The one that was used later stays."""
    fleet = fleet_of("a", "b", "c", gpus=2)
    started(fleet, "a", 0.0)
    started(fleet, "b", 1.0)
    replica = fleet.grant_at_once("a", 2.0)
    assert replica is not None
    fleet.release(replica, 3.0)
    fleet.ask("c", 4.0)
    assert kinds(fleet.decide(4.0)) == [("Sleep", "b")]


def test_one_with_a_request_in_flight_stays_and_yields_only_to_patience() -> None:
    """Two seconds later it gets no further request, and falls when its last one is over."""
    fleet = fleet_of("a", "b")
    started(fleet, "a", 0.0)
    replica = fleet.grant_at_once("a", 5.0)
    assert replica is not None
    fleet.ask("b", 6.0)
    assert fleet.decide(6.0) == []
    assert fleet.grant_at_once("a", 7.0) is replica
    fleet.release(replica, 7.5)
    assert fleet.next_time(7.5) == 6.0 + PATIENCE_S
    assert fleet.decide(8.0) == []
    assert fleet.grant_at_once("a", 8.1) is None
    fleet.release(replica, 9.0)
    assert kinds(fleet.decide(9.0)) == [("Sleep", "a")]


def test_a_pinned_one_stays_and_what_does_not_fit_beside_it_is_refused() -> None:
    """Neither idle time nor another's need lets it fall."""
    fleet = fleet_of("a", "b")
    fleet.put(replace(TERMS, name="a", pinned=True))
    (start,) = fleet.decide(0.0)
    assert isinstance(start, Start)
    fleet.serves(start.replica, "restored", 1.0, 1.0)
    assert fleet.decide(1000.0) == []
    fleet.ask("b", 1000.0)
    (refusal,) = fleet.decide(1000.0) or fleet.decide(1000.0)
    assert isinstance(refusal, Refuse)
    assert refusal.message == "'b' needs more memory than the budget has beside what is pinned."


def test_a_request_waits_until_its_deadline_and_a_full_queue_takes_none() -> None:
    """Then it is refused, with the time that it waited."""
    fleet = fleet_of("a", queue=1)
    fleet.ask("a", 0.0)
    assert fleet.ask("a", 0.0) is None
    fleet.decide(0.0)
    assert fleet.next_time(0.0) == 60.0
    (refusal,) = fleet.decide(60.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.message) == ("late", "The request waited 60.0 s for 'a', until its deadline.")


def test_a_failed_start_refuses_what_waits_and_pauses_longer_each_time() -> None:
    """1, 2, 4 seconds. Requests in between are refused at once, with the reason."""
    fleet = fleet_of("a")
    now = 0.0
    for pause_s in (1.0, 2.0, 4.0):
        fleet.ask("a", now)
        (start,) = fleet.decide(now)
        assert isinstance(start, Start)
        fleet.failed(start.replica, "no such file", 0.1, now, kind="cold")
        (refusal,) = fleet.decide(now)
        assert isinstance(refusal, Refuse)
        assert (refusal.message, refusal.retry_after_s) == ("'a' could not be started: no such file", pause_s)
        fleet.ask("a", now + pause_s / 2)
        assert kinds(fleet.decide(now + pause_s / 2) or fleet.decide(now + pause_s / 2)) == [("Refuse", "a")]
        now += pause_s


def test_an_engine_that_ends_is_started_again_for_what_waits_and_pauses_if_it_ends_again() -> None:
    """The first time at once."""
    fleet = fleet_of("a", most_requests=1)
    replica = started(fleet, "a", 0.0)
    assert fleet.grant_at_once("a", 1.0) is replica
    fleet.ask("a", 1.0)
    fleet.gone(replica, 2.0, by_itself="its engine ended")
    (start,) = fleet.decide(2.0)
    assert isinstance(start, Start)
    fleet.serves(start.replica, "restored", 1.0, 3.0)
    fleet.gone(start.replica, 4.0, by_itself="its engine ended")
    assert kinds(fleet.decide(4.0)) == [("Refuse", "a")]


def test_a_failed_wake_is_followed_by_a_start() -> None:
    """What waits goes on waiting."""
    fleet = fleet_of("a")
    replica = started(fleet, "a", 0.0)
    fleet.decide(10.0)
    fleet.sleeps(replica, ASLEEP, 10.0)
    fleet.ask("a", 11.0)
    assert kinds(fleet.decide(11.0)) == [("Wake", "a")]
    fleet.failed(replica, "it hung", 1.0, 12.0, kind="woken")
    assert kinds(fleet.decide(12.0)) == [("Start", "a")]


def test_a_cold_start_is_captured_once_idle_and_before_it_ends() -> None:
    """After five seconds; or when another deployment needs the room."""
    fleet = fleet_of("a", "b", capture="when idle", capture_after_s=5.0, can_sleep=False)
    replica = started(fleet, "a", 0.0, kind="cold")
    assert fleet.next_time(0.0) == PATIENCE_S or fleet.next_time(0.0) == 5.0
    assert kinds(fleet.decide(5.0)) == [("Capture", "a")]
    fleet.captured(replica, ASLEEP, 6.0, asleep=True, kept=True)
    assert fleet.deployments["a"].has_snapshot
    other = fleet_of("a", "b", capture="when idle", capture_after_s=5.0, can_sleep=False)
    replica = started(other, "a", 0.0, kind="cold")
    other.ask("b", 1.0)
    assert kinds(other.decide(1.0)) == [("Capture", "a")]
    other.captured(replica, ASLEEP, 2.0, asleep=True, kept=True)
    assert kinds(other.decide(2.0)) == [("Start", "b"), ("End", "a")]


def test_another_replica_is_asked_for_by_concurrency_and_goes_to_the_gpu_with_room() -> None:
    """Two GPUs hold two replicas; a third finds no room, and ends nobody."""
    fleet = fleet_of("a", gpus=2, target=2, most=3, most_requests=4)
    for _ in range(6):
        fleet.ask("a", 0.0)
    starts = [action.replica for action in fleet.decide(0.0) if isinstance(action, Start)]
    assert sorted(replica.cards for replica in starts) == [(0,), (1,)]


def test_how_many_replicas_serve() -> None:
    """As on Modal: by concurrency, with a buffer while there is traffic, between least and most."""
    terms = replace(TERMS, target=10, least=1, most=4, buffer=1)
    assert [wanted_replicas(terms, requests) for requests in (0, 1, 10, 11, 25, 1000)] == [1, 2, 2, 3, 4, 4]


def test_a_removed_deployment_ends_once_its_requests_are_over_and_a_changed_one_starts_again() -> None:
    """The others are not touched."""
    fleet = fleet_of("a", "b", gpus=2)
    started(fleet, "b", 0.0)
    replica = started(fleet, "a", 0.0)
    assert fleet.grant_at_once("a", 1.0) is replica
    fleet.put(TERMS, renewed=True)
    fleet.ask("a", 2.0)
    assert fleet.decide(2.0) == []
    fleet.release(replica, 3.0)
    assert kinds(fleet.decide(3.0)) == [("End", "a")]
    fleet.gone(replica, 4.0)
    assert kinds(fleet.decide(4.0)) == [("Start", "a")]
    fleet.remove("a")
    assert kinds(fleet.decide(5.0)) == [("Refuse", "a")]
    assert fleet.state("b") == "serving"


def test_a_larger_replica_than_was_thought_makes_idle_ones_fall() -> None:
    """Measured sizes count from then on."""
    fleet = fleet_of("a", "b", gpus=2, host=20 * GB, can_sleep=False)
    started(fleet, "a", 0.0)
    replica = started(fleet, "b", 1.0)
    fleet.measured(replica, Size(18 * GB, (40 * GB,)))
    assert kinds(fleet.decide(2.0)) == [("End", "a")]
    assert fleet.deployments["b"].serving_size == Size(18 * GB, (40 * GB,))


def test_no_more_fall_than_needed() -> None:
    """One large replica makes room as well as two small ones: the small ones, used longer ago, stay if they do not suffice."""
    small = [Replica(number=n, deployment=str(n), cards=(), taken=Taken(2), state="serving", since=0.0) for n in (1, 2)]
    large = Replica(number=3, deployment="3", cards=(), taken=Taken(10), state="serving", since=0.0)
    room = Room(Budget(14), [one.taken for one in (*small, large)])
    chosen = falls_for(Need(Size(10)), room, [*small, large], lambda _: None)
    assert chosen is not None
    assert [fall.replica.number for fall in chosen] == [3]
    assert room.host == 0


def test_a_replica_of_two_gpus_finds_any_two_with_room() -> None:
    """The largest part goes to the GPU with most room."""
    room = Room(Budget(None, (10, 30, 20)))
    assert room.place(Size(0, (15, 25))) == (2, 1)
    assert room.place(Size(0, (15, 25, 12))) is None
    assert room.place(Size(0, (1, 1, 1, 1))) is None


def test_put_to_sleep_by_hand_it_falls_one_state_once_idle() -> None:
    """Also if it is pinned: somebody asked."""
    fleet = fleet_of("a", pinned=True)
    (start,) = fleet.decide(0.0)
    assert isinstance(start, Start)
    fleet.serves(start.replica, "restored", 1.0, 1.0)
    assert fleet.grant_at_once("a", 1.0) is start.replica
    fleet.let_fall("a")
    assert fleet.decide(2.0) == []
    fleet.release(start.replica, 3.0)
    (sleep,) = fleet.decide(3.0)
    assert isinstance(sleep, Sleep)
    fleet.sleeps(start.replica, ASLEEP, 4.0)
    assert fleet.decide(5.0) == []
    fleet.let_fall("a")
    assert isinstance(fleet.decide(6.0)[0], End)


def test_a_closing_fleet_starts_nothing_and_ends_what_is_idle() -> None:
    """What waits is refused at once."""
    fleet = fleet_of("a", "b")
    replica = started(fleet, "a", 0.0)
    assert fleet.grant_at_once("a", 0.5) is replica
    fleet.ask("b", 1.0)
    fleet.close()
    assert kinds(fleet.decide(1.0)) == [("Refuse", "b")]
    fleet.release(replica, 2.0)
    assert kinds(fleet.decide(2.0)) == [("End", "a")]
