"""Files in and out: import of bases, pack directories, tokenizers and templates, the catalog and downloads."""
