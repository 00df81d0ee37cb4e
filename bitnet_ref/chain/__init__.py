"""Chains of tokens that often come as one: a table of at most 256, mined from a corpus, and drafts of it.

    table    what a table is, as a value and as a file
    count    n-grams of a token stream, in memory that does not grow with it
    mine     which of them go into the table
    show     the table as text and as a picture
    shipped  tables that come with the library
    draft    from the text so far to a guess of what comes next
    merge    a stream whose chains are one position each
    compress a dataset of such streams

generate/speculative has the guesses confirmed by the model; docs/speculative.md derives what that can save.
Read after: data/__main__. Read next: chain/table.
"""
