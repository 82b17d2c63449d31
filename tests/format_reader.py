"""Reads an archive of one topic below a directory from docs/archive-format.md alone, and writes its records as the other clients
of these tests do: `offset timestamp type epoch key value headers` (tests/src/lines.rs), in a file for each partition.

    python3 tests/format_reader.py ARCHIVE FOLDER

Needs pyarrow. It shares no code with everlog: what it cannot read, the specification fails to say.
"""

import base64
import hashlib
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as parquet

OBJECT_MAX_BYTES = 4 << 20
COLUMNS = ["kafka_partition", "kafka_offset", "ts_ms", "ts_type", "leader_epoch", "key", "value", "headers"]
DECIMAL = re.compile(r"0|-?[1-9][0-9]*")


def require(holds, why):
    if not holds:
        raise SystemExit(f"refused: {why}")


def number(text):
    require(isinstance(text, str) and DECIMAL.fullmatch(text), f"{text!r} is no decimal string")
    return int(text)


def read_json(path, expected_hash=None):
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    require(expected_hash in (None, found), f"{path} does not hash to its name")
    require(len(data) <= OBJECT_MAX_BYTES, f"{path} is too large")
    value = json.loads(data)
    require(value["version"] == 1 and value["reader_features"] == [], f"{path} needs a newer reader")
    return found, value


def range_of(entry):
    start, end = number(entry["start"]), number(entry["end"])
    require(0 <= start < end < 1 << 63, f"[{start}, {end}) holds no offset")
    return start, end


def check_entry(entry):
    start, end = range_of(entry)
    kind = entry["kind"]
    require(kind in ("data", "empty", "hole", "expired"), f"the kind {kind}")
    require(kind != "hole" or entry["reason"] == "retention", "an unknown reason")
    if kind == "data":
        low, high = map(number, entry["ts"])
        require(low <= high, "timestamps the wrong way round")
        require(1 <= number(entry["records"]) <= end - start, "more records than offsets")
        require(12 <= entry["footer"] <= number(entry["bytes"]), "a footer that does not fit")
        starts = [(epoch, number(first)) for epoch, first in entry.get("epochs", [])]
        require(all(0 <= epoch and start <= first < end for epoch, first in starts), "epochs outside")
        for (epoch, first), (next_epoch, next_first) in zip(starts, starts[1:]):
            require(first < next_first and epoch != next_epoch, "epochs out of order")


def sum_of(leaf_entries, children):
    """What an inner entry says, computed from the list of the node below."""
    parts = leaf_entries or children
    for one, following in zip(parts, parts[1:]):
        require(one["end"] == following["start"], "entries that do not touch")
    data = [e for e in parts if leaf_entries is None or e["kind"] == "data"]
    total = {"start": parts[0]["start"], "end": parts[-1]["end"]}
    for name in ("bytes", "raw", "records"):
        total[name] = sum(number(e[name]) for e in data)
    if leaf_entries is not None:
        total |= {"entries": len(parts), "segments": len(data)}
        total["holes"] = sum(e["kind"] == "hole" for e in parts)
        times = [number(e["ts"][1]) for e in data]
        spans = [[(epoch, first) for epoch, first in e.get("epochs", [])] for e in data]
        spans = [(len(s), list(s[0]), s[-1][0]) for s in spans if s]
    else:
        for name in ("entries", "segments", "holes"):
            total[name] = sum(number(e[name]) for e in parts)
        times = [number(e["max_ts"]) for e in parts if "max_ts" in e]
        spans = [e["epochs"] for e in parts if "epochs" in e]
        spans = [(number(s["count"]), s["first"], s["last"]) for s in spans]
    total = {name: str(value) for name, value in total.items()}
    if times:
        total["max_ts"] = str(max(times))
        total["dt"] = [e["dt"] for e in parts if "dt" in e][-1]
    if spans:
        count = sum(s[0] for s in spans)
        count -= sum(a[2] == b[1][0] for a, b in zip(spans, spans[1:]))
        total["epochs"] = {"count": str(count), "first": spans[0][1], "last": spans[-1][2]}
    return total


def leaf_entries_below(folder, child):
    """All entries below an inner entry, in order."""
    path = folder / "node" / child["hash"]
    _, node = read_json(path, child["hash"])
    level, entries, children = node["level"], node.get("entries"), node.get("children")
    require((entries is None) != (children is None), "entries and children")
    require(level == child["level"] <= 16 and (level == 0) == (children is None), "a wrong level")
    require(1 <= len(entries or children) <= (64 if level == 0 else 256), "too many or none")
    for entry in entries or []:
        check_entry(entry)
    for name, value in sum_of(entries, children).items():
        require(child.get(name) == value, f"{name} of {path}: {value} is not {child.get(name)}")
    if entries is not None:
        return entries
    require(all(c["level"] == level - 1 for c in children), "a child of a wrong level")
    return [entry for c in children for entry in leaf_entries_below(folder, c)]


def newest_commit(folder):
    """The newest commit of a partition, and the chain of hashes behind it as far as it is kept."""
    names = [p.name for p in (folder / "commit").iterdir() if re.fullmatch("[0-9]{20}", p.name)]
    numbers = [(1 << 64) - 1 - int(name) for name in names]
    newest, previous = None, None
    for n in sorted(numbers):
        found, commit = read_json(folder / "commit" / f"{(1 << 64) - 1 - n:020}")
        place = (commit["cluster"], commit["topic_id"], str(commit["partition"]), number(commit["number"]))
        require(place == (*folder.parts[-3:], n), f"commit {n} of another place")
        require((commit["previous"] is None) == (n == 0), "only commit 0 has none before it")
        require(previous in (None, commit["previous"]), f"commit {n} does not follow")
        newest, previous = commit, found
    return newest


def entries_of(folder):
    commit = newest_commit(folder)
    if commit is None:
        return []
    for entry in commit["open"]:
        check_entry(entry)
    entries = (leaf_entries_below(folder, commit["root"]) if commit["root"] else []) + commit["open"]
    for one, following in zip(entries, entries[1:]):
        require(one["end"] == following["start"], "entries that do not touch")
    require(commit["next_offset"] == (entries[-1]["end"] if entries else None), "a wrong next offset")
    return entries


def records_of(archive, cluster, topic, partition, entry):
    start, end = range_of(entry)
    # The first 8 hex digits of the 16 bytes behind Kafka's text form.
    id8 = base64.urlsafe_b64decode(topic["topic_id"] + "==").hex()[:8]
    folder = f"data/cluster={cluster}/topic={topic['name']}/incarnation={id8}/dt={entry['dt']}"
    path = archive / folder / f"{partition}-{start}-{end}-{entry['hash']}.parquet"
    data = path.read_bytes()
    require(len(data) == number(entry["bytes"]), f"the size of {path}")
    require(hashlib.sha256(data).hexdigest() == entry["hash"], f"{path} does not hash to its name")
    require(int.from_bytes(data[-8:-4], "little") + 8 == entry["footer"], f"the footer of {path}")
    pairs = parquet.read_metadata(path).metadata
    expected = {
        "format_version": "1",
        "cluster_id": cluster,
        "topic_id": topic["topic_id"],
        "partition": partition,
        "start_offset": entry["start"],
        "end_offset": entry["end"],
    }
    for name, value in expected.items():
        require(pairs[f"everlog.{name}".encode()].decode() == value, f"everlog.{name} of {path}")
    # Not `read_table`: it would take parts of the path for columns. And not `ts`, which is for SQL: not every time that a
    # record may have is one in Python.
    rows = parquet.ParquetFile(path).read(columns=COLUMNS).to_pylist()
    require(len(rows) == number(entry["records"]), f"the number of records of {path}")
    before = start - 1
    for row in rows:
        require(before < row["kafka_offset"] < end, f"an offset of {path}")
        before = row["kafka_offset"]
        yield row


def text_of(data):
    if data is None:
        return "-"
    return f"x{data.hex()}" if len(data) <= 24 else f"#{len(data)}:{hashlib.sha256(data).hexdigest()}"


def line_of(row):
    headers = ",".join(f"{text_of(h['key'])}={text_of(h['value'])}" for h in row["headers"]) or "."
    numbers = " ".join(str(row[name]) for name in ("kafka_offset", "ts_ms", "ts_type", "leader_epoch"))
    return f"{numbers} {text_of(row['key'])} {text_of(row['value'])} {headers}\n"


def main(root, into):
    archive = Path(root)
    _, format_file = read_json(archive / "everlog.json")
    require(format_file["format"] == "everlog", "it is no everlog archive")
    for topic_file in sorted(archive.glob("meta/*/*/topic.json")):
        _, topic = read_json(topic_file)
        cluster = topic["cluster"]
        require((cluster, topic["topic_id"]) == topic_file.parts[-3:-1], f"{topic_file} of another topic")
        for folder in sorted(topic_file.parent.iterdir()):
            if not (folder / "commit").is_dir():
                continue
            with open(Path(into) / f"p{folder.name}", "x") as lines:
                for entry in entries_of(folder):
                    if entry["kind"] == "data":
                        lines.writelines(map(line_of, records_of(archive, cluster, topic, folder.name, entry)))


if __name__ == "__main__":
    main(*sys.argv[1:])
