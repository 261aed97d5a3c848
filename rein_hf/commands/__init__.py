"""What users start from a command line, a file for each verb: `rein-hf VERB`, or `main()` of its file from Python."""
