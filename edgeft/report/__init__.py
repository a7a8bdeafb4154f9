"""What a run found, for people: `build.build_report` gathers it, `terminal` and `markdown` write it down.

Works on the JSON that stages leave behind, so it needs nothing but the standard library.
"""
