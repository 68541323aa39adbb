"""Angiography sequence classification: DICOM run -> frames -> features -> batch -> logits -> report.

Imports point from the end of this list to its beginning, never back.

    keys           names of keys, splits, tasks; the letters of shapes
    errors         exceptions, the one form of a message, damaged files told by it
    writing        result -> file, whole or not at all
    pages          numbers, template -> self-contained HTML page
    overrides      command line of a workflow -> refused, if it names an unknown id
    record         a run -> run.json: command, versions, host, duration, memory

    dicom/         DICOM files -> header, stored values
      header       what is known of a sequence before its pixels are decoded, whatever holds it
      elements     data elements -> where they are, after a walk that bounds all of a hostile file
      streams      plain, headless or deflated file -> one kind of stream
      part10       path -> a stream that pydicom reads; its many errors -> SequenceError
      files        file, folder, list or DICOMDIR -> the DICOM files in it
      values       header values -> numbers, codes, words that are safe to show
      facts        header -> the facts that leave the reader, hints at a person in the pixels
      times        timing attributes -> frame_times_ms (T,), order of files
      functional   functional groups of enhanced objects -> attributes and clock of each frame
      display      VOI, shutters, mask subtraction, padding as the exam asks for them
      layout       attributes of the pixel module -> how a sample lies in its bits
      codestreams  head of a compressed frame -> its size and precision
      fragments    encapsulated pixel data -> the fragments of each frame
      palette      stored values -> RGB through the lookup tables of the image
      decoding     compressed frame -> samples; a decoder that can break down runs in a child
      pixels       file -> checked pixel data -> stored values of chosen frames
      sequence     file, folder or list -> SequenceHeader -> stored frames (T, H, W)

    sequences/     any container -> frames -> encoder input
      phantom      seed -> synthetic exams as DICOM, labels.csv (phantom_ffa, phantom_xa: their pixels)
      nifti        4D NIfTI -> SequenceHeader -> stored frames or volumes
      images       PNG, JPEG, TIFF frames, times.csv -> SequenceHeader -> stored frames
      video        MP4, AVI -> SequenceHeader -> stored frames
      reader       any of these or DICOM -> SequenceHeader -> stored frames
      choice       frame times -> indices of the frames to use
      bolus        thumbnails -> contrast in each frame, its peak, the frames before it
      subtraction  frames -> frames minus their mask (DSA)
      geometry     shutter, collimator, black border, panels -> the part that is shown
      intensity    stored values -> brightness (T, H, W) in [0, 1], one scale a sequence
      frames       brightness -> resized -> encoder input (T, 3, H, W)
      transforms   all of these as MONAI MapTransforms
      augmentation random changes of a sequence, all frames alike
      volumes      4D NIfTI, or a list of 3D ones -> encoder input (T, 1, X, Y, Z), as MONAI MapTransforms
      dataset      items -> encoder input, bad exams marked and passed on

    datalists/     folders, labels -> datalist -> checked items
      datalist     datalist.json -> checked items, task
      items        one entry of a list -> checked item, paths inside dataset_dir
      labels       table of labels -> labelled items, task, splits with patients kept apart
      grouping     DICOM headers -> which files make one run
      scan         folder or DICOMDIR -> its sequences, and what was left out
      exam_rows    labels of the AngioReport layout -> one row an exam
      layouts      the AngioReport layout -> items in the order of time
      collect      folder, labels -> datalist.json; input of inference -> items
      findings     entries of a list -> leaks, copies, classes: what is wrong or odd in it as a whole
      check        datalist -> the same with headers and one decoded frame of each sequence
      summary      checked list -> numbers and tables
      sheet        checked list -> check.json, check.html with pictures

    networks/      tensors -> tensors
      volume_encoder volumes (N, 1, X, Y, Z) -> features (N, D), by a network of MONAI
      encoder      frames (N, 3, H, W) -> features (N, D) or patch tokens (N, P, D), any timm backbone
      weights      name -> verified state dict of the encoder, digest
      time_encoding lengths, frame_times_ms (B, T) -> real frames (B, T), elapsed time as numbers
      heads        features (B, T, D), lengths, times -> logits (B, K), a weight and a decision a frame
      classifier   image (B, T, 3, H, W) or (B, T, 1, X, Y, Z) -> logits (B, K)
      card         model.pt, model.json <-> network

    memory/        network -> bytes of a step, how to need fewer
      fakes        operators on fake tensors -> their results, each worked out once
      cuda         fake CPU tensors -> the operators and sizes that CUDA would have
      storages     operators of a step -> storages alive after each, by cause and module; FLOPs
      steps        network, inputs -> one training or inference step
      measure      network, shape of its input -> peak bytes and FLOPs of a step that is not run
      tracking     a step that runs -> what it held and computed, by the same names
      knapsack     a plain step, bytes to be saved -> the modules that save them with the fewest FLOPs
      search       workload, bytes that are free -> the way to train it with the least extra FLOPs
      subjects     name of a network or config -> workload
      budget       24GB, a card's name -> bytes that a step may hold
      plan         workload, budget -> table, YAML for finetune.yaml
      largest      workload, bytes that are free -> the largest batch, frames, image or volume that fits
      tables       cards, typical studies -> the tables of docs/memory.md

    store/         features on disk, by key
      files        bytes -> a file of the store, whole or absent
      headers      a file that may hold anything -> what it says of itself as a shard
      shards       entries <-> one shard, six arrays; digests checked
      origin       fingerprint.json <-> fingerprint, settings, versions
      index        indexes of shards -> row of a key, place of a row
      writer       entries -> the shards of one rank
      store        key -> features (T, D) or (T, P, D), times, indices; one fingerprint a store

    features/      frames -> features on disk, batches from there
      engines      frames (N, 3, H, W) -> features, by PyTorch, compiled or OpenVINO; size of a batch
      packing      images of several sequences -> full batches -> features of each
      entries      item -> key of its entry, digest of its bytes
      exams        list -> exams read ahead -> entries
      sharing      list -> exams of this process, when several share it
      fingerprint  encoder, preprocessing, precision, versions -> what a store must have been made with
      extract      items, encoder -> store
      batching     store, labels -> batch (B, T, D), lengths, frame_times_ms, label
      sampling     lengths -> batches of sequences alike in length

    curation/      what is done to a whole store
      inspection   shards in any state -> which of their entries are what was written
      lookup       items -> keys of their exams, plain and augmented
      overview     store -> a table of what it holds
      maintenance  store -> the same without what is damaged, doubled or no longer needed
      merging      stores -> one store of large shards
      recomputation  store, items -> a sample of exams encoded again
      verification   store -> whether it still is what was written
      readme       exported store -> its README
      export       store, datalist -> a folder to train from without images
      commands     the store commands of the command line

    training/      what the engines need
      threads      head, batch -> the number of CPU threads that trains it fastest
      losses       logits, labels -> loss, probabilities, likelihood
      classes      labels of a split -> weights of classes, groups to draw evenly, what is too little
      optimizer    network -> optimizer, schedule, average of its weights
      engine       batches, metrics, devices, processes for MONAI's engines
      handlers     events of the engines -> randomness of an epoch, its loss, its end, progress, tracking
      checkpoints  engines after an epoch -> best.pt, and the state that an interrupted run goes on from
      accumulation batches of one step -> the share of each in its loss
      frames       exams -> frames drawn for an epoch, read in place of those that break
      lora         layers that learn -> low-rank adapters beside them; adapters -> plain layers
      finetuning   model.pt or encoder weights -> encoder and head, what of them learns and how fast, model.pt
      fitting      a training that is about to start -> how it takes its steps, what one will hold
      out_of_memory a trainer without memory left -> what to change, in which order
      workflow     overrides -> a head trained by configs/train.yaml in this process
      outputs      head, sequences -> logits, what each frame had to do with them
      controls     recipe of a model -> heads without order, time or a trained encoder; one frame alone

    reports/       logits -> numbers, pictures
      ranking      probabilities of one class -> areas, sensitivity at a specificity, in every resample
      resampling   probabilities, labels -> each metric in the data and in every patient resample
      intervals    a metric in every resample -> value, low, high, why not
      metrics      probabilities, labels -> scores with 95 % intervals, paired differences
      calibration  logits, labels -> temperature; numbers of a reliability diagram
      thresholds   a named split -> thresholds; another split -> what they give there
      comparison   two runs on the same sequences -> paired differences, DeLong's test
      subgroups    values of a column -> scores of each group
      plots        numbers -> SVG of curves
      charts       numbers -> SVG of intervals and of training
      predictions  rows -> predictions.csv, predictions.json
      wording      scores -> sentences
      page         scores -> report.html, report.json, table
      inference    engine output -> rows
      plan_page    a memory plan -> plan.html
      judged       model.pt, store, list -> the model, checked; what its controls make of a split
      evaluation   model, controls, held-out split -> report

    selection/     one recipe of several
      exams        datalist, store -> exams of training and validation, as lists that folds train on
      folds        classes, patients -> folds of whole patients
      search       recipes, folds -> out-of-fold logits of each recipe
      scoring      out-of-fold logits -> scores, best first, the chosen one, what choosing adds
      results      scores -> results.html, results.csv, results.json, table
      refit        the chosen recipe -> model.pt, trained on all these exams
      model_choice command line -> all of this

    planning       the plan command: network or workflow, budget -> text, plan.html, plan.yaml
    demo           the whole flow on synthetic exams
    __main__       the command line
"""
