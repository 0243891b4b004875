"""How both stages use ``transformers.Trainer``: its arguments, its loss terms, and what it must never do silently."""

from __future__ import annotations

import copy
import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trrg_sdk.errors import UsageError
from trrg_sdk.processors import BF16, instructions
from trrg_train.config import LAST, OptimConfig
from trrg_train.distributed import mean_over_processes
from trrg_train.draws import Draw, Draws
from trrg_train.resume import COMPLETE_FILE, last_complete, step_of
from trrg_train.watching.progress import Speed
from trrg_train.watching.record import Fitted
from trrg_train.watching.validation import Validation
from trrg_train.watching.watch import Watch

log = logging.getLogger(__name__)

STUDIES_KEY = "studies"

Collator = Callable[[Sequence[Draw]], dict[str, Any]]

ONLY_AFTER_THE_LAST = 10**9
"""A number of steps that no run has: the Trainer evaluates after the last step whatever that is."""


def training_arguments(
    optim: OptimConfig, folder: Path, *, seed: int, select_by: str = LAST, keep: int = 2
) -> TrainingArguments:
    """Translate our few options.

    Args:
        optim: Of the stage.
        folder: Where resumable steps are kept.
        seed: Of initialisation; the order of the studies is that of :class:`~trrg_train.draws.Draws`.
        select_by: The figure of the validation whose best step is kept, if there are several evaluations.
        keep: So many of the last steps.
    """
    if optim.precision == "bf16":
        _warn_of_imitation()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # Draws lays all epochs end to end
        train_sampling_strategy="sequential",
        per_device_train_batch_size=optim.batch_size,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=optim.logging_steps,
        gradient_accumulation_steps=optim.accumulation_steps,
        bf16=optim.precision == "bf16",
        activation_checkpointing=optim.activation_checkpointing,
        save_steps=optim.save_steps,
        save_total_limit=keep,
        seed=seed,
        use_cpu=not torch.accelerator.is_available(),  # bf16 on a CPU has to be asked for
        report_to=[],  # Watch makes the callbacks
        remove_unused_columns=False,
        dataloader_num_workers=0,
        label_names=["labels"],
        disable_tqdm=True,
        **_selection(optim, select_by),
    )


def _warn_of_imitation() -> None:
    """PyTorch takes bf16 on any processor: without bf16 stage 1 of the mini model took 2.7 times as long as in fp32."""
    found = instructions()
    if found and not found & BF16 and not torch.accelerator.is_available():
        log.warning('precision = "bf16": this processor has no bf16 and imitates it, slowly; "fp32" is faster here')


def _selection(optim: OptimConfig, select_by: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": optim.eval_steps or ONLY_AFTER_THE_LAST}
    if optim.eval_steps and select_by != LAST:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": select_by}
        settings["greater_is_better"] = select_by != "loss"
    return settings


def fit(
    task: nn.Module, draws: Draws, batches: Collator, *, arguments: TrainingArguments, resume: Path | None, watch: Watch
) -> Fitted:
    """Train to the end, with all processes of the run.

    Args:
        task: Its ``forward`` takes a batch and returns ``loss`` and the terms of it, each a scalar.
        draws: All studies of the run, in order; what is left when no whole step can be made of it is not seen.
        batches: Makes a batch; ``studies`` in it, a list of study ids, is for messages and never reaches the task.
        arguments: See :func:`training_arguments`.
        resume: A complete step to continue from.
        watch: What is measured and shown.

    Returns:
        The task of the last step, or of the best where the arguments ask for it.

    Raises:
        UsageError: The loss is no finite number, the disk is full (what was saved before stays), or several GPUs are
            there and only one process, or FSDP is asked for where accelerate has none (on CPUs).
    """
    sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
    empty = without_weights(task) if sharded else None
    trainer = StudyTrainer(
        model=ready_to_shard(task) if sharded else ready_for_processes(task, arguments),
        args=arguments,
        data_collator=batches,
        train_dataset=whole_steps(draws, arguments.train_batch_size * arguments.world_size),
        callbacks=[MarkComplete(), *([ZeroGradients()] if sharded else [])],
        validation=watch.validation,
    )
    if sharded and not trainer.is_fsdp_enabled:
        raise UsageError("accelerate has FSDP on accelerators only: start without its configuration file on CPUs")
    with watch.callbacks(arguments, step=step_of(resume) if resume else 0) as callbacks:
        for callback in callbacks:
            trainer.add_callback(callback)
        _train(trainer, resume)
    return Fitted(trainer.gathered(empty) if empty else task.cpu(), trainer.step_kept(), trainer.state.log_history)


def _train(trainer: StudyTrainer, resume: Path | None) -> None:
    folder = Path(str(trainer.args.output_dir))
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not disk_is_full(error):
            raise
        kept = last_complete(folder)
        good = f"{kept.name} is complete and whole" if kept else "no step was saved before"
        raise UsageError(
            f"the disk of {folder} is full; {good}. Free some space and run again with --resume"
        ) from error


def whole_steps(draws: Draws, size: int) -> Dataset[Draw]:
    """Leave out the last draws, which fill no step of ``size`` studies: the processes never share a step unevenly."""
    return Subset(draws, range(len(draws) - len(draws) % size or len(draws)))


def ready_for_processes(task: nn.Module, arguments: TrainingArguments) -> nn.Module:
    """Let BatchNorm take its statistics from all processes on GPUs; on CPUs each process has those of its own batch.

    Raises:
        UsageError: Several GPUs and one process: transformers would split each batch without gathering the contrast.
    """
    if arguments.n_gpu > 1:
        raise UsageError(
            f"{arguments.n_gpu} GPUs are visible to one process: start with `accelerate launch --num_processes "
            f"{arguments.n_gpu} -m trrg_train.cli ...`, or let CUDA_VISIBLE_DEVICES name one"
        )
    if arguments.world_size > 1 and arguments.device.type == "cuda":
        task = nn.SyncBatchNorm.convert_sync_batchnorm(task)
    return task


def ready_to_shard(task: nn.Module) -> nn.Module:
    """Name the layers that FSDP spreads one by one, and lay each weight as it wants it: contiguous, and no scalar."""
    named = {name for module in task.modules() for name in _undivided(module)}
    layers: Any = sorted(named & {type(module).__name__ for module in task.modules()})
    task._no_split_modules = layers
    for module in task.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            weight.data = weight.data.contiguous()
            if not weight.ndim:
                module.register_parameter(name, nn.Parameter(weight.data.reshape(1), weight.requires_grad))
    return task


def _undivided(module: nn.Module) -> Iterable[str]:
    """Classes of layers that a model of transformers wants on one device."""
    names: Iterable[str] | None = getattr(module, "_no_split_modules", None)
    return names or ()


def without_weights(task: nn.Module) -> nn.Module:
    """Copy a task, buffers included, with parameters that have a shape and no storage (the meta device)."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in task.parameters()}
    return copy.deepcopy(task, empty)


def checkpoint_activations(parts: Sequence[Any], settings: dict[str, Any]) -> None:
    """Switch activation checkpointing on in models of transformers.

    Raises:
        UsageError: A model cannot do it.
    """
    for part in parts:
        try:
            part.activation_checkpointing_enable(**settings)
        except ValueError as error:
            raise UsageError(f"set activation_checkpointing = false: {error}") from error


def disk_is_full(error: BaseException) -> bool:
    """Tell whether an error of torch, safetensors or the system means that the disk is full."""
    text = str(error).lower()
    known = ("no space left", f"os error {errno.ENOSPC}", "pytorchstreamwriter failed writing")
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in text for words in known)


class MarkComplete(TrainerCallback):
    """Puts a mark into each saved step when everything of it is written: only such a step is resumed from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the step that was just saved, when every process has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()


class ZeroGradients(TrainerCallback):
    """Gives a weight that no loss reaches, such as a backbone's unused pooler, a gradient of zero.

    Without one the optimizer keeps no state of it, and torch refuses to read the step back under FSDP: it wants a state
    of every weight.
    """

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Fill what backward left empty."""
        for weight in model.parameters() if model else ():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)


class StudyTrainer(Trainer):
    """The Trainer, with each term of the loss in its log, and an end at the first loss that is no number."""

    def __init__(self, *args: Any, validation: Validation, **kwargs: Any) -> None:
        """See ``transformers.Trainer``; ``validation`` says what is measured on held-out studies, and brings its own.

        Raises:
            UsageError: A best step is to be chosen under FSDP.
        """
        super().__init__(*args, **kwargs | {"eval_dataset": ()})
        if self.is_fsdp_enabled and self.args.load_best_model_at_end:
            raise UsageError(
                "FSDP spreads the weights, so no report can be written while it trains: set eval_steps = 0"
            )
        self.remove_callback(PrinterCallback)  # Progress takes its place
        self.validation = validation
        self.speed = Speed()
        self.terms: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Keep the terms of the loss; refuse a loss that is not finite."""
        studies = inputs.pop(STUDIES_KEY)
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not bool(torch.isfinite(loss)):
            raise UsageError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}; the batch holds the studies "
                f"{', '.join(studies)}. Look at them, or lower learning_rate"
            )
        for name, value in outputs.items():
            if name.endswith("_loss"):
                self.terms[name].append(value.detach())
        self.speed.count(images=len(studies), tokens=int(inputs["report"][1].sum()) if "report" in inputs else 0)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last entry, what the task says of itself, and the speed."""
        means = {name: float(torch.stack(values).mean()) for name, values in self.terms.items()}
        self.terms.clear()
        if "loss" in logs:
            speed = self.speed.read(step=self.state.global_step, processes=self.args.world_size)
            own = {} if self.is_fsdp_enabled else self.validation.scalars(self.model)  # a shard has no whole weight
            logs = {**logs, **mean_over_processes(means), **own, **speed}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure on held-out studies in every process; the figures of the main one count, so that all choose alike.

        Raises:
            UsageError: The figure that chooses the step cannot be computed.
        """
        if self.is_fsdp_enabled:
            log.warning("FSDP spreads the weights: nothing is measured here, trrg-train evaluate does it afterwards")
            return {}
        with self.speed.pause():
            task: Any = self.model
            measured = self.validation.measure(task.eval(), step=self.state.global_step)
        figures: list[dict[str, float]] = broadcast_object_list([{f"eval_{k}": v for k, v in measured.items()}])
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted}" not in figures[0]:
            raise UsageError(f"the split val has nothing to compute {wanted} from: set select_by = {LAST!r}")
        self.log(figures[0])
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures[0])
        return figures[0]

    def step_kept(self) -> int:
        """Say whose weights the model has after training."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return step_of(Path(best)) if best else self.state.global_step

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the weights of linear layers and convolutions, and no others.

        A decay to zero would mean something for biases, norms, temperatures, positions and embeddings. The default
        of transformers decays BatchNorm, embeddings and whatever parameter has a name of its own.
        """
        looked_up = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Embedding)}
        return [
            name
            for name, weight in model.named_parameters()
            if name.endswith("weight") and weight.ndim > 1 and name not in looked_up
        ]

    def gathered(self, empty: nn.Module) -> nn.Module:
        """Put the weights that FSDP spread over the processes into a task without weights, in the main process."""
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if self.accelerator.is_main_process:
            whole = {name: weights[name].reshape(old.shape) for name, old in empty.state_dict().items()}
            empty.load_state_dict(whole, assign=True)
        return empty
