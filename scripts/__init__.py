"""Angiography sequence classification: DICOM run -> frames -> features -> batch -> logits -> report.

Imports point from the end of this list to its beginning, never back.

    keys           names of keys, splits, tasks; the letters of shapes
    errors         exceptions and the one form of a message
    overrides      command line of a workflow -> refused, if it names an unknown id

    sequences/     files -> frames
      phantom      seed -> synthetic exams as DICOM, labels.csv (phantom_ffa, phantom_xa: their pixels)
      labels       items, labels.csv -> labelled items, task, splits with patients kept apart
      collect      folder, labels.csv -> runs grouped from headers, datalist.json
      files        file, folder or list -> the DICOM files in it
      times        timing attributes -> frame_times_ms (T,), order of files
      decoding     file, indices -> decoded frames; a decoder that can break down runs in a child
      pixels       header, file -> checked pixel data -> stored values of chosen frames
      dicom        file, folder or list -> SequenceHeader -> stored frames (T, H, W)
      frames       stored frames -> grey, resized, normalised (T, H, W) -> encoder input (T, 3, H, W)
      transforms   the same as MONAI MapTransforms
      datalist     datalist.json -> checked items, task
      dataset      items -> encoder input, bad exams marked and passed on

    networks/      tensors -> tensors
      encoder      frames (N, 3, H, W) -> features (N, D), any timm backbone
      weights      name -> verified state dict of the encoder, digest
      heads        features (B, T, D), lengths, times -> logits (B, K), frame weights (B, T)
      classifier   image (B, T, 3, H, W) -> logits (B, K)
      card         model.pt, model.json <-> network

    features/      frames -> features on disk
      shards       entries <-> one file, whole or not at all
      store        key -> features (T, D), times, indices; one fingerprint a store
      fingerprint  encoder, preprocessing, precision -> what a store must have been made with
      extract      items, encoder -> store
      batching     store, labels -> batch (B, T, D), lengths, frame_times_ms, label

    training/      what the engines need
      losses       logits, labels -> loss, probabilities, likelihood
      engine       batches, metrics, handlers, devices for MONAI's engines
      controls     store, labels -> probabilities of the model, of one frame alone

    reports/       logits -> numbers, pictures
      resampling   probabilities, labels -> each metric in the data and in every patient resample
      metrics      probabilities, labels -> scores with 95 % intervals, paired differences
      plots        numbers -> SVG
      page         scores -> report.html, report.json, table
      predictions  rows -> predictions.csv, predictions.json
      inference    engine output -> rows
      evaluation   model, controls, held-out split -> report

    demo           the whole flow on synthetic exams
    __main__       the command line
"""
