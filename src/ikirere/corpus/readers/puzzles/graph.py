"""Graphs with a question that has one checked answer."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from ikirere.corpus.readers.puzzles.generator import verify

Edges = dict[tuple[int, int], int]  # (lower node, higher node) -> length
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def neighbours(size: int, edges: Edges) -> list[list[tuple[int, int]]]:
    """For each node its (neighbour, length) pairs in the order of the neighbours."""
    beside: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for (a, b), length in sorted(edges.items()):
        beside[a].append((b, length))
        beside[b].append((a, length))
    return [sorted(b) for b in beside]


def distances(size: int, edges: Edges, start: int) -> tuple[list[tuple[int, int, int]], Mapping[int, int]]:
    """Dijkstra's algorithm: (node, distance, node before) in the order in which nodes are settled, and the distance of
    each node reached. Of equally near ways to a node the one over the lowest node before it is kept."""
    beside = neighbours(size, edges)
    settled: dict[int, int] = {}
    order = []
    queue = [(0, start, start)]
    while queue:
        distance, node, before = heapq.heappop(queue)
        if node in settled:
            continue
        settled[node] = distance
        order.append((node, distance, before))
        for other, length in beside[node]:
            if other not in settled:
                heapq.heappush(queue, (distance + length, other, node))
    return order, settled


def is_shortest(edges: Edges, found: Mapping[int, int], path: list[int]) -> bool:
    """Whether the distances prove the path: no edge is a shortcut between two of them, and the path's edges add up to
    its end's distance (linear programming duality, Ford 1956)."""
    if any(
        abs(found.get(a, 0) - found.get(b, 0)) > n for (a, b), n in edges.items() if a in found or b in found
    ):
        return False
    if any((a in found) != (b in found) for a, b in edges):
        return False
    steps = [edges.get((min(a, b), max(a, b))) for a, b in pairwise(path)]
    return None not in steps and sum(s or 0 for s in steps) == found[path[-1]] and found[path[0]] == 0


def components(size: int, edges: Edges) -> list[list[int]]:
    """Connected parts, each sorted, by their lowest node (union by the lower root)."""
    root = list(range(size))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = node = root[root[node]]
        return node

    for a, b in edges:
        a, b = find(a), find(b)
        root[max(a, b)] = min(a, b)
    parts: dict[int, list[int]] = {}
    for node in range(size):
        parts.setdefault(find(node), []).append(node)
    return list(parts.values())


class Graph:
    """A family is a question (shortest way by length, fewest edges, connected parts), a number of nodes and how they
    are called; its items are random graphs."""

    name: ClassVar[str] = "graph"
    items: ClassVar[int] = 8

    def key(self, draw: random.Random, number: str) -> str:
        return number

    def family(self, key: str, draw: random.Random) -> tuple[str, int, list[str]]:
        size = draw.randint(7, 18)
        style = draw.choice(("letters", "numbers", "n"))
        names = {
            "letters": list(_LETTERS[:size]),
            "numbers": [str(i + 1) for i in range(size)],
            "n": [f"n{i}" for i in range(size)],
        }[style]
        return draw.choice(("length", "edges", "parts")), size, names

    def item(self, family: tuple[str, int, list[str]], number: int, draw: random.Random) -> str:
        question, size, names = family
        edges = self._edges(question, size, draw)
        listed = list(edges.items())
        draw.shuffle(listed)
        weighted = question == "length"
        text = [f"graph with {size} nodes and {len(edges)} edges{' of given length' if weighted else ''}:"]
        text += ["nodes: " + " ".join(names)]
        text += [f"{names[a]}-{names[b]}{f' {n}' if weighted else ''}" for (a, b), n in listed]
        if question == "parts":
            return "\n".join(text + self._parts(size, edges, names, draw)) + "\n"
        return "\n".join(text + self._way(question, size, edges, names, draw)) + "\n"

    def _edges(self, question: str, size: int, draw: random.Random) -> Edges:
        edges: Edges = {}
        for node in range(1, size):
            # Without some of the tree's edges the graph falls into parts.
            if question != "parts" or draw.random() < 0.75:
                edges[draw.randrange(node), node] = draw.randint(1, 12)
        for _ in range(draw.randint(size // 2, size + size // 2) if question != "parts" else size // 5):
            a, b = sorted(draw.sample(range(size), 2))
            edges.setdefault((a, b), draw.randint(1, 12))
        return edges if question == "length" else dict.fromkeys(edges, 1)

    def _way(
        self, question: str, size: int, edges: Edges, names: list[str], draw: random.Random
    ) -> list[str]:
        start, goal = draw.sample(range(size), 2)
        order, found = distances(size, edges, start)
        before = {node: last for node, _, last in order}
        path = [goal]
        while path[-1] != start:
            path.append(before[path[-1]])
        path.reverse()
        verify(is_shortest(edges, found, path), "a graph's path is not the shortest")
        lines = [f"shortest way from {names[start]} to {names[goal]}:"]
        for node, distance, last in order:
            lines.append(f"{names[node]} at {distance}" + (f" by {names[last]}" if node != start else ""))
            if node == goal:
                break
        return [*lines, "way: " + " ".join(names[n] for n in path), f"length: {found[goal]}"]

    def _parts(self, size: int, edges: Edges, names: list[str], draw: random.Random) -> list[str]:
        parts = components(size, edges)
        _, found = distances(size, edges, parts[-1][0])
        verify(set(found) == set(parts[-1]) and sum(map(len, parts)) == size, "a graph's parts are wrong")
        lines = ["connected parts:", *(" ".join(names[n] for n in part) for part in parts)]
        where = {node: i for i, part in enumerate(parts) for node in part}
        for _ in range(3):
            a, b = draw.sample(range(size), 2)
            lines.append(f"from {names[a]} to {names[b]}: {'yes' if where[a] == where[b] else 'no'}")
        return lines
