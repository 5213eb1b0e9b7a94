"""What is decided on everything there is, read at one revision.

holders     who holds addresses
uses        who says that he uses them
ending      a pool's end, with its last address
split       a pool in n
"""
