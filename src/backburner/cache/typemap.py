"""The type map that is stored beside a JSON body, and the decoders compiled from it.

A body of plain JSON types has no map. Otherwise, a node of the map is one of

    "date"                          the value's type
    ["tuple", node]                 a type, and the node of what it contains
    {"sold": node}                  an object, with the nodes of those entries that are not plain JSON
    [0, node]                       a list whose items all have the same node
    [1, [node, …], [0, 1, 0, …]]    a list: for each item the number of its node, 0 for none

Maps repeat while values differ: so a map is compiled once, into functions that change the parsed body in place.
"""

from collections.abc import Callable
from typing import Any

import orjson

from backburner.errors import CodecError

__all__ = ["Decoder", "TypeMap", "compile_decoder", "map_of_columns", "map_of_list", "map_of_typed_list"]

TypeMap = Any
Decoder = Callable[[Any], Any]


def map_of_list(nodes: dict[int, TypeMap], length: int) -> TypeMap:
    """The node of a list of that length, from those of its items that have one; at least one has."""
    first = next(iter(nodes.values()))
    if len(nodes) == length and all(node == first for node in nodes.values()):
        return [0, first]
    distinct: dict[bytes, TypeMap] = {}
    numbers: dict[bytes, int] = {}
    choices = [0] * length
    for index, node in nodes.items():
        written = orjson.dumps(node)
        distinct.setdefault(written, node)
        choices[index] = numbers.setdefault(written, len(distinct))
    return [1, list(distinct.values()), choices]


def map_of_typed_list(tag: str, inner: TypeMap) -> TypeMap:
    """The node of a list of values of one type, from the node of the list of their JSON forms."""
    match inner:
        case None:
            return [0, tag]
        case [0, node]:
            return [0, [tag, node]]
    _, nodes, choices = inner
    return [1, [tag, *([tag, node] for node in nodes)], [choice + 1 for choice in choices]]


def map_of_columns(columns: dict[str, TypeMap], length: int) -> TypeMap:
    """The node of a list of objects with the same keys, from the nodes of their columns."""
    if not columns:
        return None
    if all(node[0] == 0 for node in columns.values()):
        return [0, {key: node for key, (_, node) in columns.items()}]
    rows: list[dict[str, TypeMap]] = [{} for _ in range(length)]
    for key, (kind, nodes, *choices) in columns.items():
        for number, row in enumerate(rows):
            if kind == 0:
                row[key] = nodes
            elif choice := choices[0][number]:
                row[key] = nodes[choice - 1]
    return map_of_list({number: row for number, row in enumerate(rows) if row}, length)


def compile_decoder(node: TypeMap, from_json: Callable[[str], Decoder]) -> Decoder:
    """The function that turns a parsed body into the value; `from_json` returns the one for a type.

    Raises:
        CodecError: this is not a map.
    """
    if isinstance(node, str):
        return from_json(node)
    if isinstance(node, dict):
        return _entries(_named(node, from_json))
    match node:
        case [str(tag), inner]:
            return _nested(from_json(tag), compile_decoder(inner, from_json))
        case [0, inner]:
            return _compile_items(inner, from_json)
        case [1, [*inner], [*choices]]:
            decoders = [None, *(compile_decoder(choice, from_json) for choice in inner)]
            return _chosen([decoders[choice] for choice in choices])
    raise CodecError("the stored value's map of types is damaged")


def _compile_items(node: TypeMap, from_json: Callable[[str], Decoder]) -> Decoder:
    """Decode a list whose items are alike level by level, which is faster than item by item."""
    if isinstance(node, dict):
        return _columns(_named(node, from_json))
    match node:
        case [str(tag), inner]:
            return _nested(_each(from_json(tag)), _compile_items(inner, from_json))
    return _each(compile_decoder(node, from_json))


def _named(nodes: dict[str, TypeMap], from_json: Callable[[str], Decoder]) -> list[tuple[str, Decoder]]:
    return [(key, compile_decoder(node, from_json)) for key, node in nodes.items()]


def _nested(outer: Decoder, inner: Decoder) -> Decoder:
    return lambda body: outer(inner(body))


def _each(decoder: Decoder) -> Decoder:
    return lambda items: [decoder(item) for item in items]


def _entries(decoders: list[tuple[str, Decoder]]) -> Decoder:
    def decode(entries: dict[str, Any]) -> dict[str, Any]:
        for key, decoder in decoders:
            entries[key] = decoder(entries[key])
        return entries

    return decode


def _columns(decoders: list[tuple[str, Decoder]]) -> Decoder:
    def decode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for key, decoder in decoders:
            for row in rows:
                row[key] = decoder(row[key])
        return rows

    return decode


def _chosen(decoders: list[Decoder | None]) -> Decoder:
    def decode(items: list[Any]) -> list[Any]:
        return [decoder(item) if decoder else item for decoder, item in zip(decoders, items, strict=True)]

    return decode
