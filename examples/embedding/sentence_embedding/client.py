"""Embeds pairs of sentences that say the same thing, and checks that each is nearest to its own partner."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

DIMENSION = 384
PAIRS = [
    ("How do I reset my password?", "I forgot my login and need a new one."),
    ("The train to Madrid was two hours late.", "El tren a Madrid llegó con dos horas de retraso."),
    ("A man is playing the guitar on stage.", "A musician performs with his guitar in front of an audience."),
    ("Water boils at one hundred degrees Celsius.", "Wasser kocht bei hundert Grad Celsius."),
    ("The company's profits rose sharply last year.", "Last year the firm earned much more money than before."),
]


def embed(client: triton.InferenceServerClient, sentences: list[str]) -> np.ndarray:
    """One unit vector for each sentence, [n, DIMENSION]; stops the program if the answer is anything else."""
    text = triton.InferInput("TEXT", [len(sentences), 1], "BYTES")
    text.set_data_from_numpy(np.array([[sentence.encode()] for sentence in sentences], dtype=np.object_))
    embeddings: np.ndarray | None = client.infer("sentence_embedding", [text]).as_numpy("EMBEDDING")
    if embeddings is None or embeddings.dtype != np.float32 or embeddings.shape != (len(sentences), DIMENSION):
        sys.exit(f"sentence_embedding: EMBEDDING should be float32 {[len(sentences), DIMENSION]}, got {embeddings!r}")
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):
        sys.exit("sentence_embedding: the vectors should have length 1")
    return embeddings


def check(client: triton.InferenceServerClient) -> None:
    sentences = [sentence for pair in PAIRS for sentence in pair]
    embeddings = embed(client, sentences)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    for index, nearest in enumerate(similarity.argmax(axis=1)):
        if nearest // 2 != index // 2:
            sys.exit(f"sentence_embedding: {sentences[index]!r} should not be nearest to {sentences[nearest]!r}")
    print(f"{len(sentences)} sentences: each is nearest to its own paraphrase or translation")

    alone = embed(client, sentences[:1])
    if not np.allclose(alone, embeddings[:1], atol=1e-3):
        sys.exit("sentence_embedding: a sentence sent alone should get the vector that it got in company")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host:port of the server (default: %(default)s)")
    url = parser.parse_args().url
    try:
        with triton.InferenceServerClient(url) as client:
            check(client)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"sentence_embedding: the request to {url} failed: {error}")


if __name__ == "__main__":
    main()
