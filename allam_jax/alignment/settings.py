"""Settings of fine-tuning on conversations and of preference optimisation."""

from collections.abc import Mapping

from allam_jax.corpus.catalog import HADITH_BOOKS
from allam_jax.data.settings import SourceSettings
from allam_jax.errors import UserError
from allam_jax.generation.settings import EndpointSettings
from allam_jax.settings import Section, entries, nested, setting

PREFERENCE_LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "robust", "simpo")
LEARNED = ("augmented", "all", "last")
CHAT_FAULTS = (
    "not a conversation",
    "empty",
    "roles swapped",
    "wrong language",
    "cut",
    "repetition",
    "scaffold",
    "duplicate",
    "near-duplicate",
    "evaluation text",
    "sides alike",
    "translation smell",
)
CHAT_DAMAGES = ("empty", "other language", "cut", "repetition", "scaffold", "flipped")
TOO_LONG = ("whole_turns", "skip", "cut")


class ConversationSourceSettings(Section):
    """Conversations, or pairs of them, of one language."""

    path: str = setting(
        "", "JSON Lines, JSON or Parquet: a file, folder or pattern; or a saved Hugging Face dataset", path="chats"
    )
    language: str = setting("", "label of the held-out losses, such as ar; empty: the name of the source")


class ConversationSettings(Section, name="conversations"):
    """Which conversations are read, and how they become rows."""

    sources: Mapping[str, ConversationSourceSettings] = entries("base.conversations(...): what is read")
    template: str = setting(
        "",
        "chat template: allam, chatml, llama2, llama3 or a .jinja file; empty: the tokenizer's",
        path="template",
    )
    too_long: str = setting(
        "whole_turns",
        "longer than data.seq_len: whole_turns keeps the turns that fit, skip leaves it out, cut cuts a reply",
        choices=TOO_LONG,
    )
    packed: bool = setting(True, "samples share rows (best fit); otherwise each has a row of its own")
    epochs: float = setting(3.0, "how often every sample is seen; 0: train.steps says how long", least=0, most=1e6)
    held_out_share: float = setting(0.01, "of the conversations, by a hash of their text", least=0, below=1)
    max_bad_share: float = setting(0.05, "share of rows that cannot be used and ends the run", least=0, most=1)


class InstructionDataSettings(Section, name="instruction_data"):
    """Conversations that are made of texts of the catalog."""

    books: tuple[str, ...] = setting(
        ("sunan_ibn_majah",),
        "books of hadith that are asked about; none: only countries are",
        choices=tuple(HADITH_BOOKS),
    )
    most_words: int = setting(60, "of a hadith in either language; longer ones are left out", least=1)
    held_out_share: float = setting(0.1, "of what is asked about, for evaluation", least=0, below=0.5)
    preference_share: float = setting(0.2, "of it, for pairs", least=0, below=0.5)
    preferences: int = setting(0, "prompts for pairs at most; 0: all", least=0)
    prompts: int = setting(0, "held-out prompts at most; 0: all", least=0)


class SftSettings(Section, name="sft"):
    """Supervised fine-tuning."""

    learned: str = setting(
        "augmented",
        "augmented: n turns give n samples, the k-th with turns 1 to k and its last reply learned (Figure 11 of the "
        "paper); all: one sample with all replies learned; last: one with the last reply learned",
        choices=LEARNED,
    )
    average: str = setting(
        "token",
        "token: the loss is the mean over all learned tokens of a step; sample: the mean over its samples of their "
        "mean, so that long replies count no more than short ones",
        choices=("token", "sample"),
    )


class ReplaySettings(Section, name="replay"):
    """Text that is learned beside conversations, so that the model does not forget it."""

    sources: Mapping[str, SourceSettings] = entries("base.mixture(...): documents, by their weights")
    share: float = setting(0.0, "of the tokens of an epoch; 0: none", least=0, below=1)

    def check(self) -> None:
        """UserError for a share of nothing, and for sources that state epochs."""
        if self.share and not sum(source.weight for source in self.sources.values()):
            raise UserError("config.replay.sources: name at least one with a weight above 0, or set replay.share = 0")
        if any(source.epochs for source in self.sources.values()):
            raise UserError("config.replay.sources: are drawn by their weights; set epochs = 0")


class DpoSettings(Section, name="dpo"):
    """Preference optimisation on pairs. Betas of forms that divide by the length are larger: 2 to 10."""

    loss: str = setting(
        "sigmoid",
        "sigmoid: DPO; sigmoid_norm: DPO on log-probabilities per token; ipo: a squared distance, per token; robust: "
        "unbiased where label_smoothing of the pairs are swapped; simpo: per token, without a reference",
        choices=PREFERENCE_LOSSES,
    )
    beta: float = setting(0.1, "strength of the pull towards the reference", above=0, most=1e3)
    label_smoothing: float = setting(0.0, "share of pairs that are thought to be swapped", least=0, below=0.5)
    simpo_gamma: float = setting(0.5, "margin that simpo asks for", least=0, most=1e3)
    nll_weight: float = setting(0.0, "weight of the chosen side's negative log-likelihood per token", least=0, most=1e3)
    reference: str = setting(
        "cached",
        "cached: the reference's log-probabilities are computed before training and kept in the workdir; live: a "
        "second copy of the weights computes them for every batch",
        choices=("cached", "live"),
    )
    collapse_nats: float = setting(
        0.5, "fall of the chosen side's log-probability per token below the reference's that is told", above=0
    )
    max_kl: float = setting(
        0.0, "nats per token between model and reference at which the run ends early; 0: never", least=0
    )

    def check(self) -> None:
        """UserError for settings that a loss does not read."""
        if self.label_smoothing and self.loss == "ipo":
            raise UserError("config.dpo.label_smoothing: ipo has none; set it to 0, or choose another loss")


class ChatQualitySettings(Section, name="chat_quality"):
    """Checks of conversations or pairs, and what is left out for which fault."""

    sources: Mapping[str, ConversationSourceSettings] = entries("base.conversations(...): what is checked")
    evaluations: str = setting(
        "", "records of evaluation sets, all of whose texts are looked for: a file, folder or pattern", path="chats"
    )
    ngram: int = setting(13, "words of the n-grams by which texts of evaluations are found", least=1, most=1000)
    evaluation_share: float = setting(0.5, "share of such a text that a row may not have", above=0, most=1)
    shingle: int = setting(5, "words of a shingle; shorter rows have no near-duplicates", least=1)
    near_duplicate: float = setting(0.8, "Jaccard similarity of shingles from which rows are alike", above=0, most=1)
    most_similar: float = setting(0.9, "share of word pairs from which the sides of a pair are alike", above=0, most=1)
    end_habit: float = setting(
        0.8,
        "share of a source's long replies that end a sentence, from which one that does not is cut",
        least=0,
        most=1,
    )
    drop: tuple[str, ...] = setting(
        tuple(fault for fault in CHAT_FAULTS if fault != "translation smell"),
        "faults for which a row is left out",
        choices=CHAT_FAULTS,
    )
    samples: int = setting(5, "rows of each fault, and of each cluster, that the report shows", least=0, most=1000)
    embedded: int = setting(20_000, "rows that the model at init.weights embeds at most, drawn by the seed", least=2)
    clusters: int = setting(20, "clusters of their meanings", least=1, most=100_000)
    alike: float = setting(0.95, "cosine of embeddings from which rows say nearly the same", above=-1, most=1)


class DamageChatsSettings(Section, name="damage_chats"):
    """Conversations or pairs of which a known share is spoilt: what experiments on data begin with."""

    sources: Mapping[str, ConversationSourceSettings] = entries("base.conversations(...): what is read")
    kept: float = setting(
        1.0, "share of the rows that is written; a smaller one is a part of a larger one", above=0, most=1
    )
    kinds: tuple[str, ...] = setting(
        (),
        "what is done to last replies, each to those of other rows: no words, words of another source, half of them, "
        "an endless end, a prompt's remnant; or to pairs, whose sides are flipped",
        choices=CHAT_DAMAGES,
    )
    share: float = setting(0.01, "of the written rows, for each kind", above=0, most=1)


class WatchSettings(Section, name="watch"):
    """Answers to fixed prompts while a model is tuned: whether it repeats itself, ends, and how much it writes."""

    prompts: int = setting(0, "of held-out conversations that are answered; 0: none", least=0, most=100_000)
    every: int = setting(100, "steps between them; 0: at the end only", least=0)
    max_new_tokens: int = setting(128, "tokens of an answer; one that has not ended by then counts as cut", least=1)
    temperature: float = setting(0.7, "of sampling; 0 takes the likeliest token", least=0, most=1e3)


class PreferenceSettings(Section, name="preferences", version=2):
    """Rejected answers from a model: every prompt is answered at each point of a grid."""

    input: str = setting("", "conversations, as in conversations.sources: their last replies are chosen", path="chats")
    template: str = setting(
        "",
        "chat template: allam, chatml, llama2, llama3 or a .jinja file; empty: the tokenizer's",
        path="template",
    )
    temperatures: tuple[float, ...] = setting((0.6, 0.8, 1.0, 1.2, 1.4), "of the grid", above=0, most=1e3)
    top_ps: tuple[float, ...] = setting((0.9, 1.0), "nucleus values of the grid", above=0, most=1)
    samples: int = setting(1, "answers to a prompt at each point", least=1, most=1024)
    max_new_tokens: int = setting(512, "tokens of an answer", least=1)
    pairs_of_prompt: int = setting(1, "pairs that a prompt gives at most", least=1)
    most_similar: float = setting(
        0.8, "share of word pairs from which an answer counts as equal to another", above=0, most=1
    )
    keep_cut: bool = setting(False, "answers that max_new_tokens cuts may be rejected sides too")
    keep_other_language: bool = setting(False, "so may those in another language than the chosen side")
    shard_rows: int = setting(200, "rows of a file of answers", least=1)
    max_error_share: float = setting(0.1, "share of rows without answer that ends the run", least=0, most=1)
    endpoint: EndpointSettings = nested(EndpointSettings, "a server that answers instead of init.weights")

    def check(self) -> None:
        """UserError for a grid without points."""
        if not self.temperatures or not self.top_ps:
            raise UserError("config.preferences: temperatures and top_ps need at least one value each")


class ReviewSettings(Section, name="review"):
    """Rewritten texts, pairs or conversations that people accept, edit or reject."""

    input: str = setting(
        "",
        "rows with original and rewrite, aligned.jsonl.gz of task rewrite, pairs, or conversations as in "
        "conversations.sources",
        path="chats",
    )
    guidelines: str = setting(
        "", "TOML file with the guidelines in each language, such as configs/instructions/rewrite.toml", path="files"
    )
    decisions: Mapping[str, str] = entries(
        "NAME -> decisions.jsonl of another workdir, whose decisions count too", path="files"
    )
    reviewers: int = setting(1, "people who decide on an item", least=1, most=100)
    arbiter: str = setting("", "a reviewer whose decisions count alone; empty: items with a conflict are left out")
    serve: bool = setting(True, "serve the page until SIGTERM or Ctrl-C; False: only apply the decisions so far")
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0 is reachable from other machines")
    port: int = setting(8002, "port; 0: a free one", least=0, most=65535)
    title: str = setting("Review", "the page's title")
