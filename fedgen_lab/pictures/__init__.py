"""Where pictures come from: drawn sprites and domains, a learner's folders, IDX files and the Hub's data sets."""
