"""`python -m scripts store COMMAND`: what is done to a whole store; nothing heavy is imported before a command runs.

Fire makes a number of a folder such as 2024, which is a path all the same.
"""

from scripts.errors import bad_value


class StoreCommands:
    """Look at a feature store, check it, repair it, join several, hand one on."""

    def info(self, path: str) -> None:
        """Tell what a store holds and what it was made with; reads no feature. Exit status 1 if a shard is damaged.

        Args:
            path: the store, features_dir of the workflows.
        """
        from scripts.curation.overview import store_info

        finish(*store_info(str(path)))

    def verify(
        self,
        path: str,
        datalist: str | None = None,
        dataset_dir: str | None = None,
        models_dir: str | None = None,
        sample: int = 16,
        seed: int = 0,
    ) -> None:
        """Compare every byte of a store with its digests; with a datalist also encode a sample of its exams again.

        Names each damaged shard and the command that repairs the store. Encoding needs the encoder's weights and
        versions as the store was made with; equal bits are expected on the same machine, elsewhere a cosine of at
        least 0.999 for each frame. Exit status 1 if anything is wrong.

        Args:
            path: the store.
            datalist: list of the exams it was made from; several are separated by commas.
            dataset_dir: what the list's paths are relative to; the list's folder if not given.
            models_dir: where encoder weights are; models of this bundle if not given.
            sample: exams encoded again, drawn at random.
            seed: of the draw.
        """
        from scripts.curation.verification import verify_store

        finish(*verify_store(str(path), datalist, dataset_dir, models_dir, sample, seed))

    def merge(self, output: str, *paths: str) -> None:
        """Join stores of one fingerprint into one with large shards; with a single one, write it compactly.

        Every sequence is verified while it is copied, and kept once. A merge that was interrupted goes on when it is
        run again. Exit status 1 if something damaged was left out.

        Args:
            output: a new or empty folder, or a store of the same fingerprint, which gets what it lacks.
            paths: the stores, which stay as they are.
        """
        from scripts.curation.merging import merge_stores

        finish(*merge_stores(str(output), [str(path) for path in paths]))

    def prune(
        self, path: str, datalist: str | None = None, dataset_dir: str | None = None, dry_run: bool = False
    ) -> None:
        """Repair a store: drop what is damaged or double and what killed runs left, keep the rest.

        With a datalist also drops what no exam in it needs. Then cache_features computes what is missing. Exit
        status 1 if a shard of another store lies here, which has to be moved away by hand.

        Args:
            path: the store.
            datalist: keep the exams of this list alone; several lists are separated by commas.
            dataset_dir: what the list's paths are relative to; the list's folder if not given.
            dry_run: only say what would go.
        """
        from scripts.curation.maintenance import prune_store

        if not isinstance(dry_run, bool):
            raise ValueError(bad_value("store prune", "--dry_run", dry_run, "True or False"))
        finish(*prune_store(str(path), datalist, dataset_dir, dry_run))

    def export(
        self,
        path: str,
        output: str,
        licence: str,
        datalist: str | None = None,
        dataset_dir: str | None = None,
        synthetic: bool = False,
        skip_missing: bool = False,
    ) -> None:
        """Write a folder that another institution trains from without any image: features, manifest, README.

        With a datalist its exams alone, with labels and splits; patients and sequences are numbered anew. No name,
        path or date goes with it.

        Args:
            path: the store.
            output: a new or empty folder.
            licence: under which others may use the features, such as "CC BY 4.0".
            datalist: list of exams with their labels.
            dataset_dir: what the list's paths are relative to; the list's folder if not given.
            synthetic: the exams were made by a program, and the folder shall say so.
            skip_missing: leave out exams that the store does not have, instead of refusing.
        """
        from scripts.curation.export import export_store

        print(export_store(str(path), str(output), licence, datalist, dataset_dir, synthetic, skip_missing))


def finish(text: str, passed: bool) -> None:
    """Print what was found, and end with status 1 if something is wrong."""
    print(text)
    if not passed:
        raise SystemExit(1)
