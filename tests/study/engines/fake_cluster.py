"""A cluster of many slots in one process, with a clock of its own: nodes die and come back, workers die, answers are
late, and workers that were given up for dead come back with an answer. No sockets, no processes, no waiting."""

import heapq
import itertools
import random

from nonlin.study.engines import Event, Slot
from tests.study import fake_worker


def record(config, seconds):
    """The record that the fake worker would give."""
    loss = fake_worker.loss_of(config)
    return {
        "format": 1, "config_hash": fake_worker.config_hash(config), "bits_per_byte": loss,
        "status": "diverged" if loss is None else "finished", "initial_bits_per_byte": 8.0,
        "best_bits_per_byte": loss, "spike_score": 0.0, "parameters": 1000, "hidden": config["model"]["hidden"],
        "flops_per_token": 6000, "dead_share": 0.25, "sparsity": 0.5, "weights_sha256": None, "layers": None,
        "timing": {"tokens_per_second": 1000.0, "seconds": seconds, "peak_memory_bytes": 1}}


class FakeCluster:
    """``deaths``: the share of attempts whose worker or node dies, or that are preempted; 0 makes a calm cluster."""

    detached = False

    def __init__(self, seed, nodes=20, each=10, deaths=0.0, processors=("A",)):
        self.random, self.deaths = random.Random(seed), deaths
        self.slots = {n: Slot(processors[n % len(processors)], memory_bytes=n) for n in range(nodes)}
        self.free_on = dict.fromkeys(range(nodes), each)
        self.each, self.now, self.count = each, 0.0, itertools.count()
        self.coming: list = []  # (time, number, what, ...)
        self.running = {}  # handle: (node, key, begin)
        self.died, self.busy_seconds, self.starts = 0, 0.0, []
        self.where = {}  # key: processor of the attempt that answered

    def total(self):
        return self.each * len(self.slots)

    def fit(self, device, environment, bytes_per_trial):
        pass

    def free(self):
        return {self.slots[node]: count for node, count in self.free_on.items()}

    def _at(self, delay, *what):
        heapq.heappush(self.coming, (self.now + delay, next(self.count), *what))

    def start(self, request, slot):
        node = slot.memory_bytes
        assert self.free_on[node] > 0
        self.free_on[node] -= 1
        handle = f"{request.key}.{request.attempt}"
        assert handle not in self.starts  # no two attempts share a number
        self.starts.append(handle)
        self.running[handle] = node, request.key, self.now
        seconds = 60 * (0.8 + 0.4 * random.Random(request.key).random())
        chance = self.random.random()
        if chance < self.deaths:
            cause = self.random.choice(["node", "preempted", "worker"])
            self._at(seconds * self.random.random(), "death", handle, cause)
            if self.random.random() < 0.5:  # and comes back, much too late
                self._at(seconds * 2, "answer", handle, {"config_hash": request.key, "status": "a ghost"})
        else:
            self._at(0.3 * seconds, "progress", handle, {"step": 1, "loss_nats": 2.0})
            self._at(seconds, "answer", handle, record(request.body["config"], seconds))
        return handle

    def find(self, request):
        return None

    def poll(self, seconds):
        """Go on to the next thing that happens; no time passes for the caller."""
        while self.coming:
            self.now, _, what, handle, value = heapq.heappop(self.coming)
            if what == "death" and handle in self.running:
                self.died += 1
                self._end(handle)
                if value == "node":
                    return self._node_dies(self.lost_node, handle)
                return [Event("lost", handle, {"cause": "preempted" if value == "worker" else value,
                                               "reason": "planted"})]
            if what == "back":
                self.free_on[handle] = self.each
            if what == "progress" and handle in self.running:
                return [Event("progress", handle, value)]
            if what == "answer":
                if handle in self.running:
                    node, key, _ = self.running[handle]
                    self.where[key] = self.slots[node].processor
                    self._end(handle)
                return [Event("done", handle, value)]
        return []

    def _end(self, handle):
        self.lost_node, _, begin = self.running.pop(handle)
        self.busy_seconds += self.now - begin
        self.free_on[self.lost_node] += 1

    def _node_dies(self, node, first):
        lost = [first, *(handle for handle, (at, _, _) in self.running.items() if at == node)]
        for handle in lost[1:]:
            self._end(handle)
        self.died += len(lost) - 1
        self.free_on[node] = 0
        self._at(100.0, "back", node, None)
        return [Event("lost", handle, {"cause": "node", "reason": "its node died"}) for handle in lost]

    def stop(self, handle):
        self.running.pop(handle, None)

    def close(self):
        pass
