"""Every default, once. Other configs call `get_config()` from here and state only what differs.

String values may start with `@stage`: the directory of an earlier stage of the same recipe.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax.model.llama_config import ComputeOptions, LlamaConfig, preset


def model(config: LlamaConfig) -> ConfigDict:
    """A preset as config values."""
    return ConfigDict(dataclasses.asdict(config))


def documents(**values) -> ConfigDict:
    """One entry of `corpus.sources`: where documents come from."""
    source = ConfigDict()
    source.catalog = ""  # a name of the catalog (allam_jax/corpus/catalog.py), or
    source.path = ""  # the user's own .jsonl(.gz|.zst), .txt(.gz|.zst), .parquet: a file, a directory or a glob
    source.text_field = "text"  # the column or key that holds the text
    source.text_unit = "line"  # what is one document in a .txt file: line, paragraph or file
    source.language = ""  # ISO 639-1; needed with path
    source.url_field = "url"  # where a record holds its address, if anywhere
    source.date_field = "date"  # ISO 8601, or seconds since 1970
    source.domain = ""  # web, books, news, ...: for documents without an address; for the report and as a feature
    source.repair = ()  # of "mojibake", "presentation_forms", "look_alikes" (allam_jax/corpus/text_care.py)
    source.remove = ()  # of "tashkeel" (vowel marks), "tatweel", "direction_marks"; text is NFC in any case
    source.redact = ()  # of "email", "phone", "iban", "ip": replaced by [EMAIL] and so on
    source.untouched = False  # store the text as it was read, against all of the above: for scripture
    source.rules = ""  # name of a set in corpus.rules that documents have to pass; empty: none
    source.validation_share = 0.02  # of the documents is held out, chosen by a hash of their id
    source.max_bytes = 0  # stop after this many bytes of text; 0 takes everything
    source.max_bad_share = 0.01  # stop with the counts when more than this share of the records is unreadable
    source.max_damaged_share = 0.0  # ... of the files end early; up to there their documents are kept
    source.lock()
    source.update(values)
    return source


def rule(tag: str, drop: str, threshold: float) -> ConfigDict:
    """One entry of a set in `corpus.rules`: documents go where `tag drop threshold` holds, drop being < <= > >= or ==;
    `pareto` samples by the tag instead (allam_jax/corpus/rules.py). Tags: allam_jax/corpus/tags.py."""
    return ConfigDict({"tag": tag, "drop": drop, "threshold": float(threshold)})


def mixture(**values) -> ConfigDict:
    """One entry of `data.sources` or `eval.sources`: documents to draw from."""
    source = ConfigDict()
    source.path = ""  # a TFDS dataset directory written by the corpus task, or its tokens, written by tokenize
    source.split = "train"
    source.weight = 1.0  # share of the tokens, relative to the sum over sources; or
    source.epochs = 0.0  # how often it is gone through, if every source says so: then weights count for nothing
    source.tokens = 0  # of one epoch; 0: as counted from path (where epochs state a training run: by a token cache)
    source.language, source.domain, source.origin = "", "", ""  # labels in tables: en; web; natural or translated
    source.lock()
    source.update(values)
    return source


def phase(*, from_step: int, **weights: float) -> ConfigDict:
    """One entry of `data.phases`: the mixture from a step on, as weights of `data.sources` by name."""
    later = ConfigDict()
    later.from_step = from_step  # updates made when it begins
    later.weights = ConfigDict(weights)  # relative; a source that is not named is not drawn
    later.lock()
    later.weights.unlock()
    return later


def texts(**values) -> ConfigDict:
    """One entry of `tokenizer_training.sources` or of the texts that fertility is measured on."""
    source = ConfigDict()
    source.path = ""
    source.split = "train"
    source.max_bytes = 0  # 0 takes everything
    source.lock()
    source.update(values)
    return source


def arm(**values) -> ConfigDict:
    """One entry of `report.arms`: an expanded model and its continued pre-training."""
    paths = ConfigDict()
    paths.expand = ""
    paths.continued = ""
    paths.lock()
    paths.update(values)
    return paths


def merge_input(**values) -> ConfigDict:
    """One entry of `merge.models`: a model, or checkpoints of a run."""
    source = ConfigDict()
    source.path = ""  # weights directory, Hugging Face directory, or a run's workdir or checkpoint
    source.steps = ()  # of a run: its checkpoints of these steps, each a model; empty takes the newest
    source.weight = 1.0  # of each of them, relative to the sum over all (method weighted)
    source.lock()
    source.update(values)
    return source


def get_config() -> ConfigDict:
    """The defaults of every task; locked."""
    config = ConfigDict()
    config.task = "train"  # a key of allam_jax/tasks/runner.py TASKS, or recipe
    config.seed = 0  # everything random follows from it

    config.tokenizer = ""  # tokenizer directory (or tokenizer.model); empty takes the one beside the weights

    # Architecture. vocab_size 0 takes the tokenizer's; with init.weights all of it comes from the weights.
    config.model = model(preset("tiny"))
    config.model.vocab_size = 0
    config.compute = ConfigDict(dataclasses.asdict(ComputeOptions()))
    config.param_dtype = "float32"  # of the trained parameters

    # Devices along each mesh axis; -1 (one axis at most) takes what is left.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.init = ConfigDict()
    config.init.weights = (
        ""  # weights directory, Hugging Face directory, or a run's workdir or checkpoint; empty: random
    )
    config.init.optimizer = False  # also take the optimizer's moments (checkpoints only)
    config.init.step = False  # also take the step, the rng and the guard: a branch continues where its parent was
    config.init.data = False  # also take the position in the data

    config.data = ConfigDict()
    config.data.sources = ConfigDict()  # name -> mixture(...)
    config.data.phases = ConfigDict()  # name -> phase(from_step=..., SOURCE=weight, ...): other mixtures, later on
    config.data.seq_len = 256
    config.data.batch_size = 8  # sequences per optimizer step, over all devices
    config.data.lanes = 0  # independent streams that make up a batch, whatever the hosts; 0: as many of 8 as divide it

    config.train = ConfigDict()
    config.train.steps = 100
    config.train.accumulation = 1  # micro-batches per step
    config.train.z_loss = 0.0  # weight of log(Z)^2, 1e-5 where used
    config.train.loss_chunks = 4  # the logits exist one chunk of the sequence at a time
    config.train.log_every = 1

    config.optimizer = ConfigDict()
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.optimizer.no_decay = (
        "scale",
    )  # parameters without weight decay, by name: norms; add "embedding" to spare it
    config.optimizer.clip_norm = 1.0
    config.optimizer.first_moment_dtype = "float32"
    # A run without moments ramps the learning rate up ("linear") or holds it at 0 while they fill ("freeze").
    config.optimizer.rewarm_steps = 0
    config.optimizer.rewarm_mode = "linear"

    config.schedule = ConfigDict()
    config.schedule.name = "constant"  # constant | cosine | wsd; all of them warm up first
    config.schedule.peak_lr = 3e-4
    config.schedule.warmup_steps = 0
    config.schedule.decay_start = -1  # wsd: first step of the decay; -1 places it decay_steps before the end
    config.schedule.decay_steps = 0  # wsd: length of the decay
    config.schedule.decay_shape = "one_minus_sqrt"  # linear | one_minus_sqrt | cosine | exponential
    config.schedule.final_fraction = 0.0  # of peak_lr, where cosine and wsd end

    config.guard = ConfigDict()
    # Updates that spike or are not finite are skipped; the last `window` steps define what is normal.
    config.guard.window = 128
    config.guard.sigma = 6.0  # standard deviations above the mean; 0 skips only what is not finite
    config.guard.min_history = 32  # steps before anything counts as a spike
    config.guard.max_in_a_row = 20  # skipped updates in a row that stop the run; 0: never

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps; the last step is always saved
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # also keep every checkpoint at a multiple of this; 0 keeps none

    config.eval = ConfigDict()
    config.eval.sources = ConfigDict()  # name -> mixture(path=..., split="validation"); the name is the language
    config.eval.every = 0  # steps; 0 evaluates at the end only
    config.eval.max_bytes = 0  # per source; 0 takes everything
    config.eval.batch_size = 8

    config.metrics = ConfigDict()
    config.metrics.tensorboard = True
    config.metrics.wandb_project = ""
    config.metrics.peak_tflops = 0.0  # of one device, for MFU; 0: as the data sheet of the GPU says, if it is known
    config.metrics.profile_steps = ()  # (start, stop): a trace of steps start to stop - 1 in WORKDIR/profile, for XProf

    config.corpus = ConfigDict()
    config.corpus.sources = ConfigDict()  # name -> documents(...)
    config.corpus.rules = ConfigDict()  # name of a set -> name -> rule(...); ready sets: configs/corpus_rules.py
    config.corpus.tags = ()  # computed for all documents beside those that rules ask for
    config.corpus.block_lists = ConfigDict()  # language -> file of blocked words and phrases, one a line
    config.corpus.quality_models = ConfigDict()  # language -> directory of task quality_classifier
    config.corpus.features = ()  # of "url", "date", "domain", "tags", other fields: stored beside text and id
    config.corpus.parts = 1  # that a source of several files is cut into, each a task with shards of its own
    config.corpus.shard_bytes = 256_000_000  # of text; a shard is closed when it holds so much
    config.corpus.dedup = ConfigDict()
    config.corpus.dedup.url = False  # drop repeated addresses,
    config.corpus.dedup.text = False  # repeated texts (case, punctuation, space and vowel marks aside),
    config.corpus.dedup.minhash = False  # and near-duplicates
    config.corpus.dedup.scope = "corpus"  # or source: duplicates in two sources are both kept
    config.corpus.dedup.keep = "longest"  # of each group; or newest, first
    config.corpus.dedup.shingle = 13  # words; shorter documents have no near-duplicates
    config.corpus.dedup.hashes = 128
    config.corpus.dedup.bands = 14  # candidates agree in all rows of one: 1 - (1 - s^9)^14 at similarity s
    config.corpus.dedup.rows = 9
    config.corpus.dedup.verify = 0.0  # smallest Jaccard similarity of true duplicates; 0 believes the candidates
    config.corpus.executor = ConfigDict()  # where it runs; changes nothing in what is written
    config.corpus.executor.kind = "local"  # local | slurm | ray
    config.corpus.executor.workers = 1  # tasks at a time; -1 all
    config.corpus.executor.memory_gb = 4  # of a task, slurm and ray
    config.corpus.executor.partition = ""  # slurm from here on
    config.corpus.executor.time = "24:00:00"
    config.corpus.executor.cpus = 1
    config.corpus.executor.qos = ""
    config.corpus.executor.options = ()  # further sbatch options, such as "account=me"
    config.corpus.executor.ray_address = ""  # of a running cluster; empty starts one here

    config.planted = ConfigDict()  # of tasks plant (damage in real documents) and check_planted (what was found of it)
    config.planted.sources = ConfigDict()  # name -> catalog sources of one language, in a tuple
    config.planted.foreign = ()  # catalog sources of documents that do not belong there
    config.planted.share = 0.02  # of the documents, for each kind of damage
    config.planted.files = 4  # that each source is written to
    config.planted.crawl = ""  # check_planted: directory of the task plant
    config.planted.corpus = ""  # check_planted: directory of the task corpus that read it

    config.tokenizer_training = ConfigDict()
    config.tokenizer_training.sources = ConfigDict()  # name -> texts(...)
    config.tokenizer_training.vocab_size = 4096
    config.tokenizer_training.like = ""  # copy normaliser and flags of this tokenizer
    config.tokenizer_training.required_characters = ""  # always pieces of their own
    config.tokenizer_training.control_tokens = ()
    config.tokenizer_training.script = ""  # train the target side of a merge for this script, such as "arabic"

    config.tokenizer_merge = ConfigDict()
    config.tokenizer_merge.base = ""
    config.tokenizer_merge.target = ""
    config.tokenizer_merge.script = "arabic"  # only pieces with a character of this script are added
    config.tokenizer_merge.control_tokens = ("<|im_start|>", "<|im_end|>")
    config.tokenizer_merge.sources = ConfigDict()  # name -> texts(...): held-out lines for the proof and the fertility

    config.quality = ConfigDict()  # of task quality_classifier
    config.quality.positives = ConfigDict()  # name -> texts(...): encyclopedias, books
    config.quality.negatives = ConfigDict()  # name -> texts(...): unfiltered web
    config.quality.held_out = 0.1  # share of the documents that the classifier is tested on
    config.quality.epochs = 5  # this and what follows: of fastText
    config.quality.learning_rate = 0.5
    config.quality.word_ngrams = 2
    config.quality.dim = 32
    config.quality.buckets = 2**18  # of the hashed n-grams; the model has buckets x dim x 4 bytes, and the words

    config.expand = ConfigDict()
    config.expand.method = "subword_mean"  # random | mean_all | first_piece | last_piece | mean_noise
    config.expand.head_method = ""  # of the output table; empty: the same
    config.expand.noise_std = 0.02  # mean_noise, relative to the standard deviation of the base table
    config.expand.covariance_scale = 1e-9  # mean_all, as Hugging Face; 1 is the full spread of the base's rows

    config.merge = ConfigDict()  # what is written, and as which dtype: export
    # average | weighted | decay (the checkpoints of a constant learning rate become those of the decay that
    # schedule.decay_shape and schedule.final_fraction describe) | linear | slerp (between two models)
    config.merge.method = "average"
    config.merge.models = ConfigDict()  # name -> merge_input(...), in the order of the names
    config.merge.t = 0.5  # linear and slerp: 0 is the first model, 1 the second

    config.generate = ConfigDict()
    config.generate.prompts = ()
    config.generate.max_new_tokens = 64
    config.generate.temperature = 0.0  # 0 is greedy
    config.generate.top_k = 0
    config.generate.top_p = 1.0

    config.export = ConfigDict()  # how tasks export and merge write a model
    config.export.formats = ("huggingface", "orbax")
    config.export.dtype = ""  # empty keeps the parameters' dtype (of a merge: the one that holds those of all models)
    config.export.max_shard_gb = 5.0

    config.report = ConfigDict()  # of a recipe: directories of its stages
    config.report.base = ""
    config.report.tokenizers = ""
    config.report.export = ""
    config.report.arms = ConfigDict()  # method -> arm(...)

    config.mixture = ConfigDict()  # of task mixture: what data.sources and data.phases come to
    config.mixture.tokens = 0  # budget; 0: train.steps steps, or what the epochs of the sources add up to
    config.mixture.max_epochs = 0.0  # a source that would be gone through more often is refused; 0: no limit
    config.mixture.sum_of_weights = 0.0  # 1 or 100 where weights are shares that must add up; 0: they are relative

    config.plan = ConfigDict()  # of task plan: the cluster that the run is planned for
    config.plan.gpu = "a100"  # a100 (80 GB), a100_40gb, h100, h200, b200, l40s or rtx4090
    config.plan.nodes = 1
    config.plan.gpus_per_node = 8
    config.plan.memory_gib = 0.0  # of one GPU; 0 here and below: what the data sheet says
    config.plan.nvlink_gb_s = 0.0  # of one GPU to its node, each way
    config.plan.network_gb_s = 0.0  # of one GPU to other nodes, each way: 200 Gbit/s are 25
    config.plan.usable_share = 0.92  # of the memory; set XLA_PYTHON_CLIENT_MEM_FRACTION to it when training
    config.plan.tokens = 0  # budget of the whole run; 0: train.steps steps
    config.plan.power_share = 0.75  # of a node's full draw, on average
    config.plan.pue = 1.25  # energy of the building per energy of its computers
    config.plan.compile = True  # compile the real step; without, figures come from formulas alone
    config.plan.search = False  # rank meshes, remat policies and accumulation at the same batch
    config.plan.search_compiles = 3  # best candidates of a search that are compiled to confirm them

    return _locked(config)


def _locked(config: ConfigDict) -> ConfigDict:
    """Only existing keys can be set from here on, but for the sections that hold entries of the user's naming."""
    config.lock()
    for named in (
        config.data.sources,
        config.data.phases,
        config.eval.sources,
        config.corpus.sources,
        config.corpus.rules,
        config.corpus.block_lists,
        config.corpus.quality_models,
        config.planted.sources,
        config.tokenizer_training.sources,
        config.tokenizer_merge.sources,
        config.quality.positives,
        config.quality.negatives,
        config.merge.models,
        config.report.arms,
    ):
        named.unlock()
    return config


def recipe(**stages: ConfigDict) -> ConfigDict:
    """A recipe: named configs that run in order; `--config.stage.NAME.key=value` changes one."""
    config = ConfigDict()
    config.task = "recipe"
    config.stages = tuple(stages)
    config.stage = ConfigDict(stages)
    return config
