"""`python -m scripts COMMAND`: make exams, lists and weights, or run the whole demo; each command has --help."""

import difflib
import inspect
import sys
from typing import Any

from scripts.curation.commands import StoreCommands, finish
from scripts.errors import bad_value


class Commands:
    """Commands beside the workflows of configs/, which run with `python -m monai.bundle run`."""

    store = StoreCommands()

    def phantom(
        self, output_dir: str, kind: str = "ffa_leak", num_patients: int = 120, seed: int = 0, rows: int = 256
    ) -> None:
        """Write synthetic angiography exams as DICOM, with labels.csv.

        Args:
            output_dir: gets exams/ and labels.csv.
            kind: ffa_leak (retinal fluorescein) or xa_flow (X-ray, TIMI grades).
            num_patients: patients with one to three sequences each.
            seed: the same seed gives the same bytes.
            rows: height and width of a frame in pixels.
        """
        from pathlib import Path

        from scripts.sequences.phantom import write_exams

        labels = write_exams(Path(output_dir), kind, num_patients, seed, rows)
        print(f"synthetic exams: {labels.parent}\nlabels: {labels}")

    def datalist(
        self,
        dataset_dir: str,
        labels: str | None = None,
        output: str | None = None,
        classes: str | tuple[str, ...] | None = None,
        num_folds: int = 5,
        seed: int = 0,
        layout: str = "auto",
        label_column: str | None = None,
        synthetic: bool = False,
    ) -> None:
        """Group the exams of a folder into sequences, from headers alone, and write a datalist.

        DICOM files of any nesting, NIfTI, videos and folders of images are found. Patients are kept in one split,
        classes balanced. Without labels every sequence goes to `test`, which is enough for cache_features and
        inference. What is left out is printed with the reason.

        Args:
            dataset_dir: searched with all folders below; or a DICOMDIR, whose files are taken.
            labels: CSV with the columns image (path in dataset_dir, a file or a folder) and label (class name, or
                several joined by |), and, if wanted, patient and split. With the layout angioreport a CSV or JSON
                of exams; Train/Train.csv if not given.
            output: the JSON to write; datalist.json in dataset_dir if not given.
            classes: names in the order of the logits, separated by commas; sorted if not given.
            num_folds: one fold each for validation and test, the rest for training; not used with given splits.
            seed: of the split.
            layout: files, angioreport (Train/Train/12_L/0.jpg), or auto, which recognises the latter.
            label_column: column of the labels to learn; label if not given, with angioreport Impression.
            synthetic: the exams were made by a program, and every report shall say so.
        """
        from scripts.datalists.collect import make_datalist

        names = classes.split(",") if isinstance(classes, str) else classes
        made = make_datalist(dataset_dir, labels, output, names, num_folds, seed, layout, label_column, synthetic)
        print(made)

    def check(
        self,
        datalist: str,
        dataset_dir: str | None = None,
        output_dir: str | None = None,
        max_sequence_bytes: int = 2 * 2**30,
        sample: int = 24,
    ) -> None:
        """Check a datalist before it is used: what cannot be read, what leaks, what looks odd.

        Reads every header and decodes one frame of each sequence. Prints a table whose last line says pass or fail,
        as does the exit status (0 or 1), and writes check.json and check.html, a page with pictures of a sample.

        Args:
            datalist: the JSON file.
            dataset_dir: what its paths are relative to; the datalist's folder if not given.
            output_dir: gets both files; the datalist's folder if not given.
            max_sequence_bytes: largest decoded size of a sequence accepted.
            sample: sequences shown on the page, spread over splits and classes.
        """
        from scripts.datalists.sheet import run_check

        text, passed = run_check(datalist, dataset_dir, output_dir, max_sequence_bytes, sample)
        finish(text, passed)

    def cross_validate(
        self, folds: int = 5, repeats: int = 2, num_resamples: int = 2000, refit: bool = False, **recipe: Any
    ) -> None:
        """Judge the recipe of train.yaml on the exams of training and validation, by folds of whole patients.

        The test split is not looked at. Any id of configs/train.yaml can be given beside these flags, such as
        --dataset_dir, --features_dir, --output_dir, --head_name or --seed. Writes output_dir/cross_validate with
        results.html, .csv and .json; finished folds are kept, so the same command goes on where it was stopped.
        Exit status 1 if a fold failed.

        Args:
            folds: parts of the exams; one is held out, one is the validation split, at least 3.
            repeats: times that the exams are parted anew.
            num_resamples: patients drawn with replacement, for the 95 % intervals.
            refit: then train on all these exams, as long as was best in the folds, and write model_path.
        """
        from scripts.selection.model_choice import choose

        finish(*choose("cross_validate", None, None, folds, repeats, num_resamples, refit, recipe))

    def sweep(
        self,
        heads: str | tuple[str, ...] = "gru,attention,transformer",
        learning_rates: float | tuple[float, ...] = (0.001, 0.003),
        folds: int = 5,
        repeats: int = 2,
        num_resamples: int = 2000,
        refit: bool = False,
        **recipe: Any,
    ) -> None:
        """Cross-validate each head with each learning rate and compare them in one table.

        As cross_validate otherwise; writes output_dir/sweep.

        Args:
            heads: separated by commas.
            learning_rates: separated by commas.
            folds: parts of the exams; one is held out, one is the validation split, at least 3.
            repeats: times that the exams are parted anew.
            num_resamples: patients drawn with replacement, for the 95 % intervals.
            refit: then train the likeliest on all these exams, as long as was best in its folds, and write model_path.
        """
        from scripts.selection.model_choice import choose

        names, rates = _listed(heads), _listed(learning_rates)
        finish(*choose("sweep", names, rates, folds, repeats, num_resamples, refit, recipe))

    def compare(self, a: str, b: str, num_resamples: int = 2000, seed: int = 0) -> None:
        """Compare two models on the same sequences: paired differences, and DeLong's test of each class's AUROC.

        Args:
            a: folder of an evaluation, output_dir/evaluation of evaluate.yaml.
            b: another one, of the same split.
            num_resamples: patients drawn with replacement, for the 95 % intervals.
            seed: of those draws.
        """
        from scripts.reports.comparison import compare_reports

        print(compare_reports(str(a), str(b), num_resamples, seed))

    def weights(self, name: str, models_dir: str = "models", source: str | None = None) -> None:
        """Make or download named encoder weights, verify them and print their digest.

        Args:
            name: dinov2_small or retfound_green.
            models_dir: where the file goes.
            source: a local copy to use instead of the network.
        """
        from scripts.networks.fetching import fetch
        from scripts.networks.weights import NAMED

        path, digest = fetch(name, models_dir, source)
        print(f"{path}\ndigest {digest}\n{NAMED[name].origin}\nlicence: {NAMED[name].licence}")

    def plan(
        self,
        config: str | None = None,
        network: str | None = None,
        shape: str | tuple[int, ...] | None = None,
        budget: str | int = "24GB",
        options: dict | None = None,
        optimizer: str = "adamw",
        amp: bool = True,
        splittable: bool = True,
        everything: bool = False,
        largest: str | None = None,
        table: str | None = None,
        report: str | None = None,
        fragment: str | None = None,
        **overrides: Any,
    ) -> None:
        """Say what training needs and how it fits, without a GPU: micro-batches, what is computed again, at what cost.

        A step is simulated on tensors without data. Prints a table of what was tried, and the knobs for
        configs/finetune.yaml. Exit status 1 if nothing fits. With --config any id of that workflow can be given
        beside these flags, such as --batch_size 16 or --max_frames 20.

        Args:
            config: a training workflow, such as configs/finetune.yaml, whose network and batch are planned for.
            network: instead, a timm backbone with a GRU head, or a class such as monai.networks.nets.UNet.
            shape: of a batch for that network: B,T,3,H,W or B,C,D,H,W; B is the batch of one optimizer step.
            budget: 24GB, 24GiB, a card such as rtx-4090, or here: the card of this machine.
            options: further arguments of the network, as {name: value}.
            optimizer: adamw, adam, sgd or sgd_momentum.
            amp: half precision by autocast.
            splittable: false where micro-batches change the result, as with a loss over pairs.
            everything: also simulate what cannot be the best, to show it beside it.
            largest: batch, frames, image or volume: print the largest that fits instead.
            table: hardware or scenarios: print that table of docs/memory.md instead.
            report: also write the plan as a page with pictures, such as plan.html.
            fragment: also write the knobs as a file, such as plan.yaml, to be given after configs/finetune.yaml:
                --config_file "['configs/finetune.yaml','plan.yaml']".
        """
        from scripts.planning import print_plan

        print_plan(
            config=config,
            overrides=overrides,
            network=network,
            shape=shape,
            budget=budget,
            options=options,
            report=report,
            fragment=fragment,
            settings={"optimizer": optimizer, "amp": amp, "splittable": splittable},
            everything=everything,
            enlarge=largest,
            named_table=table,
        )

    def demo(self, output_dir: str = "demo", num_patients: int = 120, seed: int = 0) -> None:
        """Run everything on synthetic exams: make, cache, train, evaluate, predict. Takes a few minutes.

        Args:
            output_dir: gets the exams and all results.
            num_patients: of the synthetic set.
            seed: of exams, split and training.
        """
        from scripts.demo import run_demo

        run_demo(output_dir, num_patients, seed)


def _listed(value: Any) -> list[Any]:
    """What Fire makes of values between commas, or of one, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def known_flags(arguments: list[str]) -> list[str]:
    """The arguments as Fire shall have them; a flag that the command lacks is refused before Fire runs the command."""
    command: Any = Commands
    words: list[str] = []
    while inspect.isclass(command) or isinstance(command, StoreCommands):
        if len(words) == len(arguments) or arguments[len(words)].startswith("-"):
            return arguments
        words.append(arguments[len(words)])
        command = getattr(command, words[-1].replace("-", "_"), None)
    if command is None:
        return arguments
    parameters = inspect.signature(command).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        # Ids of a workflow, which are checked where its file is read; Fire would take --help for one.
        return [*words, "--", "--help"] if {"--help", "-h"}.intersection(arguments) else arguments
    known = [p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_POSITIONAL]
    for argument in arguments[len(words) :]:
        name = argument[2:].partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in (*known, "help", ""):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean --{near[0]}?" if near else ""
            raise ValueError(bad_value(" ".join(words), "flag", f"--{name}", f"one of {', '.join(known)}", hint))
    return arguments


def main() -> None:
    """Run the command of the command line; an error of ours is one line."""
    import fire

    from scripts.overrides import show_errors_plainly

    show_errors_plainly()
    fire.Fire(Commands(), known_flags(sys.argv[1:]), name="python -m scripts")


if __name__ == "__main__":
    main()
