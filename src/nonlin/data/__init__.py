"""Corpora, tokens, batches; numpy, no torch."""

from nonlin.data.corpus import Corpus, load_corpus
from nonlin.data.dataset import Dataset, batch, evaluation_batches, must_be_longer
from nonlin.data.preparing import identity, intact, prepare
from nonlin.data.sources import Sources
from nonlin.data.splitting import split

__all__ = ["Corpus", "Dataset", "Sources", "batch", "evaluation_batches", "identity", "intact", "load_corpus",
           "must_be_longer", "prepare", "split"]
