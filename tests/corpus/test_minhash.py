"""MinHash and duplicates against brute force, the formula of banding, and datatrove's own steps."""

import itertools
import struct
from collections import Counter, defaultdict

import numpy as np
import pytest

from allam_jax.corpus import duplicates
from allam_jax.corpus.minhash import MinHash, jaccard
from allam_jax.corpus.settings import DedupSettings
from allam_jax.errors import UserError

MINHASH = MinHash(DedupSettings())


def words(rng, count):
    return [f"w{number}" for number in rng.integers(0, 1 << 40, count)]


def shingle_sets(rng, similarity, size=120):
    """Two arrays of random shingles whose Jaccard similarity is exactly `similarity` (of 20ths of `size`)."""
    shared = round(similarity * size)
    values = rng.integers(0, 1 << 63, size, dtype=np.uint64)
    rest = (size - shared) // 2
    return values[: shared + rest], np.concatenate([values[:shared], values[shared + rest :]])


def test_shingles_are_the_set_of_ngrams():
    """Equal n-grams, and only those, are equal shingles."""
    rng = np.random.default_rng(0)
    text = [f"w{number}" for number in rng.integers(0, 3, 400)]
    minhash = MinHash(DedupSettings(shingle=3))
    (shingles,) = minhash.shingles([text])
    grams = list(zip(text, text[1:], text[2:], strict=False))
    assert len(shingles) == len(grams)
    assert len(set(zip(grams, shingles.tolist(), strict=True))) == len(set(grams)) == len(set(shingles.tolist()))
    assert [len(some) for some in MINHASH.shingles([text[:12], [], text[:13], text[:14]])] == [0, 0, 1, 2]
    assert [len(some) for some in MINHASH.shingles([text[:12]])] == [0]
    assert MINHASH.shingles([]) == []


def test_documents_do_not_reach_into_their_neighbours():
    rng = np.random.default_rng(5)
    texts = [[f"w{number}" for number in rng.integers(0, 9, size)] for size in (40, 0, 5, 13, 12, 90, 1, 30)]
    value = {}  # of each 13-gram, wherever it stands
    for some, text in zip(MINHASH.shingles(texts), texts, strict=True):
        grams = [tuple(text[start : start + 13]) for start in range(len(text) - 12)]
        assert len(some) == len(grams)
        value.update(zip(grams, some.tolist(), strict=True))
        np.testing.assert_array_equal(some, MINHASH.shingles([text])[0])
    assert len(set(value.values())) == len(value)


@pytest.mark.parametrize("size", [1, 7, 2500])
def test_a_signature_is_the_minimum_over_the_shingles(size):
    shingles = np.random.default_rng(2).integers(0, 1 << 63, size, dtype=np.uint64)
    alone = [MINHASH.signature(shingles[place : place + 1]) for place in range(size)]
    np.testing.assert_array_equal(MINHASH.signature(shingles), np.min(alone, axis=0))


def test_jaccard_is_that_of_sets():
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = (rng.integers(0, 30, 20).astype(np.uint64) for _ in range(2))
        sets = set(a.tolist()), set(b.tolist())
        assert jaccard(a, b) == len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signature_values_agree_as_often_as_the_similarity():
    rng = np.random.default_rng(2)
    for similarity in (0.2, 0.5, 0.8):
        pairs = [shingle_sets(rng, similarity) for _ in range(300)]
        agree = np.mean([(MINHASH.signature(a) == MINHASH.signature(b)).mean() for a, b in pairs])
        spread = np.sqrt(similarity * (1 - similarity) / (300 * 126))
        assert abs(agree - similarity) < 4 * spread + 0.002


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_pairs_become_candidates_with_the_probability_of_the_formula(similarity):
    rng = np.random.default_rng(round(100 * similarity))
    count = 2000
    found = 0
    for _ in range(count):
        a, b = shingle_sets(rng, similarity)
        assert similarity in (0.5, 0.9) or abs(jaccard(a, b) - similarity) < 0.01
        found += (MINHASH.band_keys(MINHASH.signature(a)) == MINHASH.band_keys(MINHASH.signature(b))).any()
    expected = 1 - (1 - similarity**9) ** 14
    assert abs(found / count - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_band_keys_are_equal_where_all_rows_are():
    rng = np.random.default_rng(3)
    first = rng.integers(0, 1 << 32, (50, 126), dtype=np.uint32)
    second = np.where(rng.random((50, 126)) < 0.05, first + np.uint32(1), first)
    truth = (first.reshape(50, 14, 9) == second.reshape(50, 14, 9)).all(axis=2)
    assert 0.1 < truth.mean() < 0.9
    np.testing.assert_array_equal(MINHASH.band_keys(first) == MINHASH.band_keys(second), truth)


def test_wrong_parameters():
    with pytest.raises(UserError, match="14 bands of 10 rows need 140 hashes, there are 128"):
        DedupSettings(rows=10)


@pytest.fixture(scope="module")
def corpus():
    """Signatures of 400 documents, half of them changed copies (also of copies)."""
    rng = np.random.default_rng(4)
    texts = [words(rng, rng.integers(40, 200)) for _ in range(200)]
    for _ in range(200):
        copy = list(texts[rng.integers(len(texts))])
        for _ in range(rng.integers(0, 4)):
            copy[rng.integers(len(copy))] = "changed"
        texts.append(copy)
    shingles = MINHASH.shingles(texts)
    return shingles, np.stack([MINHASH.signature(some) for some in shingles])


def band_pairs(signatures, *, every):
    keys = MINHASH.band_keys(signatures)
    rows = np.arange(len(keys))
    return [duplicates.band_pairs(keys[:, band], rows, every=every) for band in range(14)]


def brute_force_clusters(signatures, *, verify=lambda a, b: True):
    """Connected components of all pairs that agree in a band, by flooding."""
    bands = signatures.reshape(len(signatures), 14, 9)
    neighbours = defaultdict(set)
    for a, b in itertools.combinations(range(len(signatures)), 2):
        if (bands[a] == bands[b]).all(axis=1).any() and verify(a, b):
            neighbours[a].add(b)
            neighbours[b].add(a)
    left, found = set(neighbours), []
    while left:
        group, edge = set(), [left.pop()]
        while edge:
            node = edge.pop()
            group.add(node)
            edge += neighbours[node] - group
        left -= group
        found.append(group)
    return found


@pytest.mark.parametrize("verified", [False, True])
def test_clusters_are_those_of_brute_force(corpus, verified):
    shingles, signatures = corpus
    verify = (lambda a, b: jaccard(shingles[a], shingles[b]) >= 0.75) if verified else None
    groups = brute_force_clusters(signatures, verify=verify or (lambda a, b: True))
    lengths = np.array([len(some) for some in shingles])
    preferences = duplicates.preference("longest", lengths=lengths, dates=lengths)
    found = duplicates.clusters(band_pairs(signatures, every=verified), preferences, verify=verify)
    keepers = [min(group, key=lambda row: (-lengths[row], row)) for group in groups]
    removed = sorted(row for group, keeper in zip(groups, keepers, strict=True) for row in group - {keeper})
    assert found.removed.tolist() == removed
    assert len(removed) > 60
    sizes = sorted(map(len, groups))
    assert found.sizes == {size: sizes.count(size) for size in set(sizes)}


def test_datatrove_finds_the_same_clusters_in_the_same_signatures(corpus, tmp_path):
    """Its bucket and cluster steps read our signatures from its own file format."""
    pytest.importorskip("regex")  # which datatrove imports here and does not require
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster
    from datatrove.utils.hashing import HashConfig

    _, signatures = corpus
    parts = [signatures[:150], signatures[150:]]
    for rank, part in enumerate(parts):
        for band in range(14):
            rows = sorted((*part[row, 9 * band : 9 * band + 9].tolist(), row) for row in range(len(part)))
            path = tmp_path / "sigs" / f"bucket_{band:03d}" / f"{rank:05d}.minhash.sig"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(struct.pack("<9II", *row) for row in rows))
    config = MinhashConfig(
        n_grams=13, num_buckets=14, hashes_per_bucket=9, hash_config=HashConfig(precision=32, hash_fc="sha1")
    )
    buckets = MinhashDedupBuckets(str(tmp_path / "sigs"), str(tmp_path / "pairs"), config=config)
    for band in range(14):
        buckets.run(None, band, 14)
    cluster = MinhashDedupCluster(str(tmp_path / "pairs"), str(tmp_path / "out"), config=config, save_cluster_id=True)
    cluster.run(None, 0, 1)
    theirs = defaultdict(set)
    for rank, offset in ((0, 0), (1, 150)):
        content = (tmp_path / "out" / f"{rank:06d}.clusters").read_bytes()
        for row, label in struct.iter_unpack("<II", content):
            theirs[label].add(offset + row)
    removed = sum(len((tmp_path / "out" / f"{rank:06d}.remove").read_bytes()) // 4 for rank in (0, 1))
    found = duplicates.clusters(band_pairs(signatures, every=False), np.zeros(400, np.int64))
    assert found.removed.tolist() == sorted(row for group in theirs.values() for row in group - {min(group)})
    assert found.sizes == Counter(map(len, theirs.values()))
    assert len(found.removed) == removed


@pytest.mark.parametrize("policy", ["longest", "newest", "first"])
def test_equal_keys_are_a_brute_force_set(policy):
    rng = np.random.default_rng(5)
    keys = rng.integers(0, 40, (300, 2), dtype=np.uint64)
    lengths, dates = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    among = np.flatnonzero(rng.random(300) < 0.8)
    found = duplicates.equal_keys(keys, duplicates.preference(policy, lengths=lengths, dates=dates), among=among)
    order = {"longest": lambda r: (-lengths[r], r), "newest": lambda r: (-dates[r], r), "first": lambda r: r}[policy]
    groups = defaultdict(list)
    for row in among:
        groups[tuple(keys[row])].append(int(row))
    expected = [row for rows in groups.values() for row in rows if row != min(rows, key=order)]
    assert found.removed.tolist() == sorted(expected)
    assert sum((size - 1) * count for size, count in found.sizes.items()) == len(expected)


def test_nothing_in_nothing_out():
    none = np.empty(0, np.int64)
    assert len(duplicates.clusters([], none).removed) == 0
    assert duplicates.band_pairs(np.empty(0, np.uint64), none, every=True).shape == (0, 2)
    assert duplicates.equal_keys(np.empty((0, 2), np.uint64), none, among=none).sizes == {}
