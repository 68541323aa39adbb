"""Names shared by the whole flow: dictionary keys, splits, and the letters of tensor shapes.

B sequences, T frames, C channels, H rows, W columns, N frames of several sequences flattened,
P patches of a frame, D encoder feature width, M model width, K classes.
"""

# --- keys of an item, a batch and an engine's output ---
ENTRY = "entry"  # item, in place of image: key of its entry in a feature store, 64 hex digits
IMAGE = "image"  # item: path(s); after reading: (T, H, W), then (T, 3, H, W); batch: (B, T, 3, H, W)
FEATURES = "features"  # (T, D); batch: (B, T, D)
LENGTHS = "lengths"  # real frames of each sequence, (B,) int64
FRAME_TIMES = "frame_times_ms"  # (T,) float32 since the first frame, NaN = unknown; batch: (B, T)
FRAME_INDICES = "frame_indices"  # (T,) int64, 0-based positions in the source sequence
SOURCE = "source"  # the path as the datalist spells it; names an item in messages and results
ERROR = "error"  # stands in an item that could not be read, with the reason
MODALITY = "modality"  # datalist: DICOM's code, for containers that state none, optional
FRAMES = "frames"  # datalist: 0-based frame indices to use, optional
NUM_FRAMES = "num_frames"  # of the whole sequence, once its header was read
LABEL = "label"  # class index, or K zeros and ones
PATIENT = "patient"
SEQUENCE = "sequence"
HEADER = "header"  # after reading: SequenceHeader, facts of the exam, never a person's
PRED = "pred"  # logits, (B, K)
FRAME_WEIGHTS = "frame_weights"  # (B, T), each row sums to 1 over its real frames

# --- the datalist ---
TASK = "task"
TYPE = "type"
CLASSES = "classes"
ORDERED = "ordered"  # true: the classes are grades, the first the lowest; optional
SYNTHETIC = "synthetic"  # true: the exams were made by a program, and so every report says
TRAINING = "training"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAINING, VALIDATION, TEST)

# --- kinds of task ---
BINARY = "binary"
MULTICLASS = "multiclass"
MULTILABEL = "multilabel"
TASK_TYPES = (BINARY, MULTICLASS, MULTILABEL)
