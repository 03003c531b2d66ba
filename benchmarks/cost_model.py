"""The cost of a run in formulas, and a simulation that it is held to. Imports nothing of seqloss.

Time is in seconds, sizes in bytes. `Costs` are measured (`scaling.py measure`), `Cluster` and
`Workload` are stated; docs/scaling.md has the tables that `scaling.py tables` makes of them.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass
from statistics import mean

BLOCK = 4 << 20
"""Bytes of a request to an object store: those of `seqloss_cli/inputs/remote.py`."""
SYNC = 2.0
"""Seconds of work that a lost machine loses: those of `seqloss_cli/results/sinks.py`."""


@dataclass(frozen=True)
class Costs:
    """Measured on one core, in CPU time, but for sizes."""

    startup: float
    """Of a process, without its weights."""
    row: float
    """Reading, tokenizing, totals and writing, of a row whatever its length."""
    token: float
    """The same, of each token."""
    reread_row: float
    """Of a row that `--resume` keeps."""
    reread_token: float
    merge_row: float
    merge_token: float
    """Of a token whose loss stands in the row."""
    bytes_row: float
    """Of a row of results (JSONL), with text and tokens."""
    bytes_token: float
    bare_bytes_row: float
    """With --no-text and --no-tokens."""


@dataclass(frozen=True)
class Workload:
    """What is to be scored, and the model."""

    name: str
    tokens: float
    rows: float
    parameters: float
    """Of a dense model; of a mixture those that a token meets."""
    bytes_per_token: float = 4.0
    """Of the inputs."""
    context: int = 8192
    stride: int = 4096
    gpus_per_replica: int = 1
    keeps_tokens: bool = True
    """Results hold texts and tokens."""

    @property
    def tokens_per_row(self) -> float:
        return self.tokens / self.rows

    @property
    def fed(self) -> float:
        """Tokens that are fed, over those of the rows: windows overlap (rule 7)."""
        n, c, s = self.tokens_per_row, self.context, self.stride
        targets = n - 1
        return (targets if targets <= c else c + c * math.ceil((targets - c) / s)) / n


@dataclass(frozen=True)
class Cluster:
    """Stated figures of machines: none of them was measured."""

    gpus: int
    flops: float = 989e12
    """Dense bfloat16 of one GPU, per second."""
    utilisation: float = 0.4
    """Share of that which a forward pass has."""
    price: float = 2.5
    """Of a GPU for an hour, in dollars; its host is in it."""
    request_price: float = 0.4e-6
    """Of a GET, in dollars."""
    network: float = 1e9
    """Bytes per second that one worker reads of an object store."""
    load: float = 1e9
    """Bytes per second at which weights are loaded."""
    longest_shard: float = 3600
    """Seconds that a shard may take."""
    failures: float = 1 / 100
    """Of a worker, per hour: node loss and preemption together."""
    stragglers: float = 0.02
    """Share of attempts on a slow machine."""
    slowness: float = 2.0
    """Of such a machine."""


@dataclass(frozen=True)
class Prediction:
    """The steps of a run; seconds of the whole run, unless the name says otherwise."""

    workers: int
    shards: int
    gpu_s: float
    """Forward passes, each worker."""
    host_s: float
    """Reading, tokenizing and writing, each worker: one core, none of it overlapped."""
    start_s: float
    """Process and weights, each worker, for all of its shards."""
    failures_s: float
    """Starting again, and reading again what is kept, each worker."""
    count_s: float
    """Reading the bytes before a shard's own to count lines, each worker, where all rows are in one
    file of JSONL."""
    tail_s: float
    """From the mean to the last worker."""
    merge_s: float
    """One process."""
    requests: float
    out_bytes: float
    dollars: float

    @property
    def score_s(self) -> float:
        """Seconds until the last shard is whole, of files that are no larger than a shard."""
        return self.gpu_s + self.host_s + self.start_s + self.failures_s + self.tail_s

    @property
    def bottleneck(self) -> str:
        """The largest step."""
        steps = {
            "GPU": self.gpu_s, "host": self.host_s, "start-up": self.start_s,
            "failures": self.failures_s, "tail": self.tail_s, "merge": self.merge_s,
        }  # fmt: skip
        return max(steps, key=lambda name: steps[name])


@dataclass(frozen=True)
class ShardTimes:
    """Seconds of one shard."""

    start: float
    work: float
    reread: float
    """Of the whole of it, by --resume."""


def shard_times(work: Workload, cluster: Cluster, costs: Costs) -> tuple[int, int, ShardTimes]:
    """Return workers, shards, and the seconds of a shard.

    Shards are of one length and as many for each worker: up to eight where their work is ten times
    their start, and more where they would take too long.
    """
    workers = cluster.gpus // work.gpus_per_replica
    flops = 2 * work.parameters * work.tokens * work.fed
    gpu = flops / (cluster.flops * cluster.utilisation * work.gpus_per_replica)
    host = work.rows * costs.row + work.tokens * costs.token
    reread = work.rows * costs.reread_row + work.tokens * costs.reread_token
    start = costs.startup + 2 * work.parameters / work.gpus_per_replica / cluster.load
    each = (gpu + host) / workers
    n = max(1, min(8, int(each / (10 * start))), math.ceil(each / cluster.longest_shard))
    return workers, n * workers, ShardTimes(start, each / n, reread / workers / n)


def mean_shard(times: ShardTimes, cluster: Cluster) -> tuple[float, float]:
    """Return the mean seconds of a shard with stragglers, and those that failures add to it.

    A failure costs a start, the reading of half a shard on average, and what was not on disk yet.
    """
    slow = 1 + cluster.stragglers * (cluster.slowness - 1)
    clean = (times.start + times.work) * slow
    again = (times.start + times.reread / 2 + SYNC) * slow
    # Attempts fail, too: of those that start again.
    rate = cluster.failures / 3600
    return clean, clean * rate * again / max(1e-9, 1 - rate * again)


def predict(work: Workload, cluster: Cluster, costs: Costs) -> Prediction:
    """Return what a run takes."""
    workers, shards, times = shard_times(work, cluster, costs)
    each = shards // workers
    clean, lost = mean_shard(times, cluster)
    host = (work.rows * costs.row + work.tokens * costs.token) / workers
    slow = clean / (times.start + times.work)
    # The last shards end between the mean and one slow shard after it; the middle is taken.
    tail = (times.start + times.work) * (cluster.slowness if cluster.stragglers else 1) / 2
    in_bytes = work.tokens * work.bytes_per_token
    score = each * (clean + lost) + tail
    if work.keeps_tokens:
        out = work.rows * costs.bytes_row + work.tokens * costs.bytes_token
    else:
        out = work.rows * costs.bare_bytes_row
    requests = in_bytes / BLOCK + shards
    merge_tokens = work.tokens * costs.merge_token if work.keeps_tokens else 0.0
    return Prediction(
        workers=workers,
        shards=shards,
        gpu_s=(times.work * each - host) * slow,
        host_s=host * slow,
        start_s=times.start * each * slow,
        failures_s=lost * each,
        count_s=in_bytes * (shards - 1) / 2 / workers / cluster.network,
        tail_s=tail,
        merge_s=work.rows * costs.merge_row + merge_tokens,
        requests=requests,
        out_bytes=out,
        dollars=score / 3600 * cluster.gpus * cluster.price + requests * cluster.request_price,
    )


def simulate(work: Workload, cluster: Cluster, costs: Costs, seed: int) -> float:
    """Return the seconds until the last shard is whole, of one run drawn at random.

    A scheduler gives each free worker the next shard. Failures come at moments drawn for each
    worker; one in four takes the whole node of eight. What a failed shard has on disk is kept, and
    it goes to the end of the queue.
    """
    workers, shards, times = shard_times(work, cluster, costs)
    draw, rate, now = random.Random(seed), cluster.failures / 3600, 0.0
    lost = [_next_loss(draw, rate, 0.0) for _ in range(-(-workers // 8))]
    free, waiting = list(range(workers)), deque((n, 0.0) for n in range(shards))
    running: list[tuple[float, int, int, float]] = []  # end, shard, worker, share that is done
    while waiting or running:
        while waiting and free:
            (shard, share), worker = waiting.popleft(), free.pop()
            slow = cluster.slowness if draw.random() < cluster.stragglers else 1.0
            before = times.start + times.reread * share
            lives = draw.expovariate(rate * 3 / 4) if rate else math.inf
            while (node := lost[worker // 8]) <= now:
                lost[worker // 8] = _next_loss(draw, rate, node)
            lives = min(lives, node - now)
            needed = slow * (before + times.work * (1 - share))
            if lives < needed:
                share += max(0.0, (lives - SYNC) / slow - before) / times.work
                heapq.heappush(running, (now + lives, shard, worker, share))
            else:
                heapq.heappush(running, (now + needed, shard, worker, 1.0))
        now, shard, worker, share = heapq.heappop(running)
        free.append(worker)
        if share < 1:
            waiting.append((shard, share))
    return now


def _next_loss(draw: random.Random, rate: float, after: float) -> float:
    return after + draw.expovariate(rate / 4) if rate else math.inf


def simulated(work: Workload, cluster: Cluster, costs: Costs, n: int = 20) -> tuple[float, float]:
    """Return the mean and the longest of n simulated runs, seconds."""
    found = [simulate(work, cluster, costs, seed) for seed in range(n)]
    return mean(found), max(found)
