"""Corpora, tokens, batches; numpy, no torch."""

from nonlin.data.corpus import Corpus, load_corpus, split
from nonlin.data.dataset import Dataset, batch, evaluation_batches, intact, prepare

__all__ = ["Corpus", "Dataset", "batch", "evaluation_batches", "intact", "load_corpus", "prepare", "split"]
