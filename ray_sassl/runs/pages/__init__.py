"""Pages for people: one run (`run_page`), runs side by side (`comparison_page`), and what every such page is made of (`page`, `curves`)."""
