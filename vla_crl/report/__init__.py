"""Everything a person looks at: tables, plots, videos and the page that holds them."""
