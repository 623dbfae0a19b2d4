"""HTML pages: one run (`run_page`), runs side by side (`comparison_page`), and the parts of pages (`page`, `curves`)."""
