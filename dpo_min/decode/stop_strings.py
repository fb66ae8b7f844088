"""Stop strings: where the text of a completion ends, whatever tokens it is made of."""

import codecs


class StopStrings:
    """Where a completion ends because its text holds one of some strings.

    The strings are searched for in the bytes of the tokens, not among ids: a text has many tokenizations, and a string
    may begin inside one token and end inside another. So a completion ends with the token that completes a string.
    Its ids and log-probabilities keep this token whole; its text ends before the string.
    """

    def __init__(self, strings, decode_bytes):
        """`decode_bytes`, ids → bytes, is a tokenizer's. Raises ValueError where a string is empty."""
        self.strings, self.decode_bytes = [string.encode() for string in strings], decode_bytes
        if b"" in self.strings:
            raise ValueError("stop: an empty string is in every text")

    def __call__(self, ids):
        """Whether the text of the ids holds a stop string."""
        return any(string in self.decode_bytes(ids) for string in self.strings)

    def before(self, ids):
        """The bytes before the first stop string."""
        data = self.decode_bytes(ids)
        return data[: min((data.find(string) for string in self.strings if string in data), default=len(data))]

    def settled(self, ids):
        """The bytes that are text whatever comes next: all but an ending with which a stop string may begin."""
        data = self.before(ids)
        if self(ids):
            return data
        sizes = [n for string in self.strings for n in range(1, len(string)) if data.endswith(string[:n])]
        return data[: len(data) - max(sizes, default=0)]

    def text(self, ids):
        """The text before the first stop string; bytes that are not UTF-8 become U+FFFD."""
        return self.before(ids).decode("utf-8", errors="replace")

    def pieces(self):
        """A function of a growing completion: ids → the text that has been settled since the function's last call.

        With `final=True` it returns the rest. All pieces together are `text`.
        """
        said, characters = 0, codecs.getincrementaldecoder("utf-8")("replace")  # a token may end inside a character

        def piece(ids, final=False):
            nonlocal said
            data = self.before(ids) if final else self.settled(ids)
            new, said = data[said:], len(data)
            return characters.decode(new, final)

        return piece
