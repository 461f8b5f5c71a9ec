"""What the reports of all ranks mean, taken together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cifarscale.checks.finding import Finding, failure, ok, warning
from cifarscale.checks.probe import SUM_MB, Reach, Report

CLOCK_WARNING_S, CLOCK_FAILURE_S = 1, 60
SPACE_WARNING_GB, SPACE_FAILURE_GB = 5, 0.5
SLOW_GB_PER_S = 0.1
"""Of a sum between nodes: about what 1 Gbit/s Ethernet gives."""
_MOST_NAMES = 8


@dataclass(frozen=True)
class Expected:
    """What the doctor knows before it hears of the nodes.

    Attributes:
        folder: what the nodes are to share.
        token: the word that lies in it.
        shards: the folder of shards; empty if there is none.
        shards_digest: of these, as seen from here.
        gpus_per_node: that the profile asks for.
        meeting_s: how long ranks wait for each other.
    """

    world_size: int
    folder: str
    token: str
    shards: str = ""
    shards_digest: str = ""
    gpus_per_node: int = 0
    meeting_s: float = 300


def diagnose(reports: Sequence[Report], expected: Expected) -> list[Finding]:
    """One line for each thing that was looked at, in the order in which one would mend them."""
    findings = [_ranks(reports, expected)]
    if reports:
        checks = (_folder, _shards, _space, _names, _meeting, _sum, _software, _gpus, _clocks, _weights, _wandb)
        findings += [check(reports, expected) for check in checks]
    return findings


def _ranks(reports: Sequence[Report], expected: Expected) -> Finding:
    missing = sorted(set(range(expected.world_size)) - {report.rank for report in reports})
    nodes = len({report.node for report in reports})
    if missing:
        return failure(
            "ranks",
            f"{_ranks_named(missing)} of {expected.world_size} left no report",
            f"Python or this package is not there on their node, or it does not share {expected.folder}; their logs "
            "lie in that folder",
        )
    return ok("ranks", f"all {expected.world_size} started, on {nodes} {'node' if nodes == 1 else 'nodes'}")


def _folder(reports: Sequence[Report], expected: Expected) -> Finding:
    blind = [report for report in reports if report.token != expected.token]
    if blind:
        return failure(
            "run folder",
            f"{_where(blind)}: cannot read what was written here to {expected.folder}",
            "work in a folder that all nodes share, and name it in the profile: shared_folder = …",
        )
    return ok("run folder", f"the same on every node: {expected.folder}")


def _shards(reports: Sequence[Report], expected: Expected) -> Finding:
    if not expected.shards:
        return warning("shards", "there are none here to compare", "build them: cifarscale shards build")
    blind = [report for report in reports if report.shards_error]
    if blind:
        return failure(
            "shards",
            f"{_where(blind)}: cannot be read: {blind[0].shards_error}",
            "put them into a folder that all nodes share, and name it with --data",
        )
    others = [report for report in reports if report.shards != expected.shards_digest]
    if others:
        return failure(
            "shards",
            f"{_where(others)}: others in {expected.shards} than on this machine",
            "that folder is not shared: copy the same shards to every node, or name a shared one with --data",
        )
    return ok("shards", f"the same on every node: {expected.shards}")


def _space(reports: Sequence[Report], expected: Expected) -> Finding:
    least = min(reports, key=lambda report: report.free_gb)
    text = f"{least.free_gb:,.1f} GB free where runs are written"
    if least.free_gb < SPACE_FAILURE_GB:
        return failure("space", text, "free some, or work in another folder")
    if least.free_gb < SPACE_WARNING_GB:
        return warning("space", text, "checkpoints may not fit: free some, or work in another folder")
    return ok("space", text)


def _names(reports: Sequence[Report], expected: Expected) -> Finding:
    blind = [report for report in reports if report.unresolved]
    if blind:
        unknown = dict.fromkeys(name for report in blind for name in report.unresolved)
        return warning(
            "names",
            f"{_where(blind)}: no address for {_short(list(unknown))}",
            "jobs do without, since SLURM tells them rank 0's address; for other programs the cluster's administrators "
            "can add them to DNS or /etc/hosts",
        )
    nodes = _nodes(reports)
    if len(nodes) == 1:
        return ok("names", f"{nodes[0]} is alone")
    return ok("names", f"every node has an address for {_short(nodes)}")


def _meeting(reports: Sequence[Report], expected: Expected) -> Finding:
    apart = [report for report in reports if report.stage == "looked"]
    if apart:
        why = next((report.error.partition(". ")[0] for report in apart if report.error), "they ended before that")
        if len(reports) < expected.world_size:
            return failure("meeting", f"not all ranks came: {why}", "first see to the ranks that left no report")
        return failure(
            "meeting",
            f"{_where(apart)}: did not meet the others: {why}",
            'a firewall between the nodes, or the wrong network: name one in the profile, such as interface = "ib0"',
        )
    if expected.world_size == 1:
        return ok("meeting", "one rank has none to meet; see more with --nodes 2")
    longest = max(report.meeting_s for report in reports)
    return ok("meeting", f"all ranks within {longest:.1f} s (limit: {expected.meeting_s:.0f} s)")


def _sum(reports: Sequence[Report], expected: Expected) -> Finding:
    apart = [report for report in reports if report.stage == "met"]
    if apart:
        why = next((report.error.partition(". ")[0] for report in apart if report.error), "they ended during it")
        return failure(
            "all-reduce",
            f"{_where(apart)}: could not sum with the others: {why}",
            'name the network in the profile, such as interface = "ib0"; with GPUs, environment.NCCL_DEBUG = "INFO" '
            "says more in the logs",
        )
    done = [report for report in reports if report.stage == "done"]
    if not done:
        return warning("all-reduce", "not tried, since the ranks did not meet", "see the line above")
    if expected.world_size == 1:
        return ok("all-reduce", "one rank has nothing to sum")
    wrong = [report for report in done if not report.sum_is_right]
    if wrong:
        return failure(
            "all-reduce",
            f"{_where(wrong)}: a wrong sum over {done[0].backend}",
            "the network or a GPU corrupts data: tell the cluster's administrators, and avoid the node "
            '(sbatch.exclude = "…" in the profile)',
        )
    slowest = max(done, key=lambda report: report.sum_s)
    rate = SUM_MB * 2**20 / slowest.sum_s / 1e9
    text = f"right; {SUM_MB} MiB over {done[0].backend} in {1e3 * slowest.sum_s:,.1f} ms, {rate:.2f} GB/s"
    if rate < SLOW_GB_PER_S and len(_nodes(reports)) > 1:
        return warning("all-reduce", f"{text}: slow", 'name a faster network in the profile, such as interface = "ib0"')
    return ok("all-reduce", text)


def _software(reports: Sequence[Report], expected: Expected) -> Finding:
    for what, of in (("torch", _torch), ("Python", _python)):
        if different := _different(reports, of):
            return failure(
                "software", f"{what} differs: {different}", "one environment for all nodes: python = … in the profile"
            )
    broken = [report for report in reports if report.torchvision_error]
    if broken:
        return failure(
            "software",
            f"{_where(broken)}: torchvision does not load: {broken[0].torchvision_error}",
            "install torch and torchvision together: pip install -c constraints.txt -e .",
        )
    return ok("software", f"Python {_python(reports[0])}, torch {_torch(reports[0])}")


def _gpus(reports: Sequence[Report], expected: Expected) -> Finding:
    # Where all tasks of a node see one GPU it is their own, as with --gpus-per-task; if not, their sum says so.
    more = {report.node for report in reports if len(report.gpus) != 1}
    few = [each for each in reports if len(each.gpus) < expected.gpus_per_node and each.node in more]
    if few:
        return failure(
            "GPUs",
            f"{_where(few)}: torch {_torch(few[0])} sees {len(few[0].gpus)}, and the profile asks for "
            f"{expected.gpus_per_node} a node; driver {_driver(few[0])}",
            "a driver too old for this torch, or a torch without CUDA, or gpu_request; or run on CPUs: --profile cpu",
        )
    if not expected.gpus_per_node:
        return ok("GPUs", "none asked for")
    for what, of in (("driver", _driver), ("kind", _kinds)):
        if different := _different(reports, of):
            return warning(
                "GPUs",
                f"their {what} differs: {different}",
                "the slowest sets the pace, and results differ in rounding: choose with gpu_type or constraint",
            )
    return ok("GPUs", f"{expected.gpus_per_node} a node, {_kinds(reports[0])}, driver {_driver(reports[0])}")


def _clocks(reports: Sequence[Report], expected: Expected) -> Finding:
    known = [report for report in reports if report.stage == "done"]
    if len(known) < 2:
        return ok("clocks", "nothing to compare")
    worst = max(known, key=lambda report: abs(report.clock_s))
    first = known[0]
    where = f"{worst.node} is {abs(worst.clock_s):,.1f} s {'ahead of' if worst.clock_s > 0 else 'behind'} {first.node}"
    if abs(worst.clock_s) > CLOCK_FAILURE_S:
        return failure("clocks", where, "have its clock set (NTP): credentials and file times go wrong by that much")
    if abs(worst.clock_s) > CLOCK_WARNING_S:
        return warning("clocks", where, "have its clock set (NTP): logs of several nodes are out of order")
    return ok("clocks", f"agree to {max(1.0, 1e3 * abs(worst.clock_s)):,.0f} ms")


def _weights(reports: Sequence[Report], expected: Expected) -> Finding:
    state = _worst(report.weights for report in reports)
    without = [report for report in reports if report.weights == state]
    if state == "unreachable":
        return warning(
            "weights",
            f"{_short(_nodes(without))}: neither Inception's weights for FID, nor a network to fetch them",
            "run cifarscale fid once where there is a network, with the same home; or fid --weights FILE",
        )
    if state == "unasked":
        return warning("weights", "not looked for, since torchvision does not load", "see the line on software")
    return ok("weights", "Inception's are here" if state == "here" else "Inception's can be fetched")


def _wandb(reports: Sequence[Report], expected: Expected) -> Finding:
    if _worst(report.wandb for report in reports) == "unreachable":
        return warning(
            "W&B",
            f"{_short(_nodes(report for report in reports if report.wandb == 'unreachable'))}: not reachable",
            "runs tracked online write files then; upload them later from here: cifarscale sync",
        )
    return ok("W&B", "offline" if _worst(report.wandb for report in reports) == "here" else "reachable")


def _torch(report: Report) -> str:
    return report.torch


def _python(report: Report) -> str:
    return report.python


def _driver(report: Report) -> str:
    return report.driver or "none"


def _kinds(report: Report) -> str:
    return " and ".join(dict.fromkeys(report.gpus)) or "none"


def _different(reports: Sequence[Report], of: Callable[[Report], str]) -> str:
    """`value on nodes` for each value if there are several."""
    values = dict.fromkeys(map(of, reports))
    if len(values) == 1:
        return ""
    nodes = {value: _nodes(report for report in reports if of(report) == value) for value in values}
    return "; ".join(f"{value} on {_short(names)}" for value, names in nodes.items())


def _worst(states: Iterable[Reach]) -> Reach:
    order: tuple[Reach, ...] = ("unreachable", "reachable", "here", "unasked")
    return min(states, key=order.index)


def _nodes(reports: Iterable[Report]) -> list[str]:
    return list(dict.fromkeys(report.node for report in reports))


def _where(reports: Sequence[Report]) -> str:
    """`rank 1 (n1)`, `ranks 2-4 (n2, n3)`."""
    return f"{_ranks_named([report.rank for report in reports])} ({_short(_nodes(reports))})"


def _ranks_named(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0, 2-5`."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return f"rank{'s' if len(ranks) > 1 else ''} {_short(['-'.join(map(str, part)) for part in parts])}"


def _short(names: Sequence[str]) -> str:
    """The names; of many the first ones."""
    shown = names if len(names) <= _MOST_NAMES + 1 else [*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"]
    return ", ".join(shown)
