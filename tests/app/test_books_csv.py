"""Reading CSV files of books: every kind of file that people have."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.books_csv import BadRow, BookRow, BooksFile, NoBooksError, parse_year, read_header
from app.csv_rows import MAX_LINES_OF_A_ROW
from app.isbn import isbn13


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "books.csv"


def read(file: Path, content: str | bytes, encoding: str = "utf-8") -> list[BookRow | BadRow]:
    file.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return list(BooksFile(file).rows())


def books(rows: list[BookRow | BadRow]) -> list[tuple[str, str, int | None, str | None]]:
    return [(row.title, row.author, row.year, row.isbn) for row in rows if isinstance(row, BookRow)]


def bad(rows: list[BookRow | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252"])
def test_any_delimiter_line_end_and_encoding(file: Path, delimiter: str, end: str, encoding: str) -> None:
    lines = ["Title;Author;Year", "Émile, or Not;Brontë;1847", "Second;Müller;1999"]
    text = end.join('"' + line.replace(";", f'"{delimiter}"') + '"' for line in lines)
    assert books(read(file, text, encoding)) == [
        ("Émile, or Not", "Brontë", 1847, None),
        ("Second", "Müller", 1999, None),
    ]


def test_typographic_quotes_of_windows_are_read(file: Path) -> None:
    rows = read(file, "title,author\nIt\u2019s,A \u2013 B\n", "cp1252")
    assert books(rows) == [("It\u2019s", "A \u2013 B", None, None)]


@pytest.mark.parametrize(
    "header",
    [
        "TITLE,AUTHOR,YEAR,ISBN",
        "Book Title,Authors,Publication Year,ISBN13",
        " name , Author_Name ,original_publication_year, isbn_13",
        "Book-Title,Book-Author,Year-Of-Publication,ISBN",
        "original_title,writer,published,ISBN-10",
        "title,author(s),Date Published,isbn10",
    ],
)
def test_columns_go_by_many_names(file: Path, header: str) -> None:
    assert books(read(file, f"{header}\nEmma,Jane Austen,1815,9780141439587\n")) == [
        ("Emma", "Jane Austen", 1815, "9780141439587")
    ]


def test_the_best_name_wins_and_an_empty_cell_leaves_it_to_the_next(file: Path) -> None:
    rows = read(file, "original_title,title,author\nOld,New,A\nOnly,,A\n")
    assert [row.title for row in rows if isinstance(row, BookRow)] == ["New", "Only"]


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", []), (b"\n\n", []), (b"a;b;c\n1;2;3\n", ["a", "b", "c"]), (b"title,year\n", ["title", "year"]),
     (b"PK\x03\x04\x00", ["PK���"])],
)  # fmt: skip
def test_a_file_without_title_and_author_tells_its_columns(file: Path, content: bytes, found: list[str]) -> None:
    with pytest.raises(NoBooksError) as caught:
        read(file, content)
    assert caught.value.found == found
    with pytest.raises(NoBooksError):
        read_header(content, complete=True)


def test_the_header_is_judged_as_soon_as_it_is_there() -> None:
    assert read_header(b"tit", complete=False) is None
    assert read_header(b'title,"auth', complete=False) is None
    assert read_header("\ufeff\r\ntitle,author".encode(), complete=False) is None
    assert read_header(b"title,author\n", complete=False) is not None
    assert read_header(b'title,author,"two\nlines"\n', complete=False) is not None
    assert read_header(b"title,author", complete=True) is not None
    with pytest.raises(NoBooksError):
        read_header(b"x" * 200_000, complete=False)


def test_bad_rows_are_reported_with_their_physical_lines_and_the_others_land(file: Path) -> None:
    text = (
        "title,author,year\n"
        '"Two\nlines",A,2001\n'  # lines 2 and 3
        ",B,2002\n"  # 4
        "C,,2003\n"  # 5
        "\n"  # 6: nothing
        ",,\n"  # 7: nothing
        "D,D,soon\n"  # 8
        "E,E,2004,too,many\n"  # 9
        "F,F,2005,,\n"  # 10: fine, the rest is empty
        "G\x00,G,2006\n"  # 11
        "H,H\n"  # 12: fine, there is no year
        "I\n"  # 13
    )
    rows = read(file, text)
    assert [book[0] for book in books(rows)] == ["Two lines", "F", "H"]
    assert [line for line, _ in bad(rows)] == [4, 5, 8, 9, 11, 13]
    assert [reason.split(";")[0] for _, reason in bad(rows)] == [
        "the title is missing",
        "the author is missing",
        "the year 'soon' is not a year",
        "it has 5 cells and the header 3",
        "the title cannot be used: it contains the control character '\\x00'",
        "the author is missing",
    ]


def test_a_quotation_that_is_never_closed_costs_one_row(file: Path) -> None:
    after = "".join(f"T{number},A,1999\n" for number in range(500))
    rows = read(file, f'title,author,year\n"Open,A,1999\n{after}')
    assert [line for line, _ in bad(rows)] == [2]
    assert len(books(rows)) == 500


def test_lone_quotation_marks_within_cells_are_text(file: Path) -> None:
    rows = read(file, 'title,author\n5" Disk,A\nThe "Best" Book,B\n"He said ""no""",C\n')
    assert [book[0] for book in books(rows)] == ['5" Disk', 'The "Best" Book', 'He said "no"']


def test_a_long_quotation_is_one_row_and_a_cell_without_end_is_a_bad_one(file: Path) -> None:
    long = "x\n" * (MAX_LINES_OF_A_ROW - 2)
    rows = read(file, f'title,author,review\nA,A,"{long}"\nB,B,{"y" * 3_000_000}\nC,C,\n')
    assert [book[0] for book in books(rows)] == ["A", "C"]
    assert len(bad(rows)) == 1


def test_a_title_beyond_the_limit_is_a_bad_row(file: Path) -> None:
    rows = read(file, f"title,author\n{'x' * 501},A\n{'x' * 500},A\n")
    assert bad(rows) == [(2, "the title has 501 characters; 500 is the limit")]
    assert len(books(rows)) == 1


def test_the_layout_of_goodbooks_10k_is_read(file: Path) -> None:
    text = (
        "book_id,goodreads_book_id,best_book_id,work_id,books_count,isbn,isbn13,authors,original_publication_year,"
        "original_title,title,language_code,average_rating\n"
        "1,2767052,2767052,2792775,272,439023483,9.78043902348e+12,Suzanne Collins,2008.0,The Hunger Games,"
        '"The Hunger Games (The Hunger Games, #1)",eng,4.34\n'
        '2,3,3,4640799,491,439554934,9.78043955493e+12,"J.K. Rowling, Mary GrandPré",1997.0,'
        'Harry Potter and the Philosopher\'s Stone,"Harry Potter and the Sorcerer\'s Stone",eng,4.44\n'
        '3,4,4,5,6,,,Homer,-720.0,Ἰλιάς,The Iliad,eng,3.83\n'
        "4,4,4,5,6,,9.78014143951e+12,Somebody,,,Without,eng,1\n"
    )  # fmt: skip
    assert books(read(file, text)) == [
        ("The Hunger Games (The Hunger Games, #1)", "Suzanne Collins", 2008, "9780439023481"),
        ("Harry Potter and the Sorcerer's Stone", "J.K. Rowling, Mary GrandPré", 1997, "9780439554930"),
        ("The Iliad", "Homer", -720, None),
        ("Without", "Somebody", None, None),
    ]


@pytest.mark.parametrize(
    ("cell", "isbn", "left_out"),
    [
        ("", None, False), ("nan", None, False), ("0439023483", "9780439023481", False),
        ("439023483", "9780439023481", False),
        ("978-0-439-02348-1", "9780439023481", False), ('"=""0439023483"""', "9780439023481", False),
        ("9780439023481.0", "9780439023481", False), ("080442957X", "9780804429573", False),
        ("80442957x", "9780804429573", False),
        ("9.78043902348e+12", None, True), ("0439023484", None, True),
        ("4006381333931", None, True), ("unbekannt", None, True),
    ],
)  # fmt: skip
def test_an_isbn_is_normalised_or_left_out(file: Path, cell: str, isbn: str | None, left_out: bool) -> None:
    (row,) = read(file, f"title,author,isbn\nT,A,{cell}\n")
    assert isinstance(row, BookRow)
    assert (row.isbn, row.isbn_left_out) == (isbn, left_out)


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("1999", 1999), (" 2003.0 ", 2003), ("-720", -720), ("-720.0", -720), ("720 BC", -720),
        ("44 b.c.", -44), ("8", 8),
        ("c. 1999", 1999), ("ca 1600", 1600), ("[1815]", 1815), ("1815?", 1815),
        ("2003-11-30", 2003), ("2003-11", 2003),
        ("11/30/2003", 2003), ("30.11.2003", 2003), ("2003-11-30T00:00:00", 2003),
        ("0", None), ("", None), ("n.d.", None), ("NaN", None),
    ],
)  # fmt: skip
def test_years_are_read_as_catalogues_write_them(text: str, year: int | None) -> None:
    assert parse_year(text) == year


@pytest.mark.parametrize("text", ["soon", "19999", "1999.5", "2101", "5000 BC", "MCMXCIX", "1999-2001-1", "1e3", "٣"])
def test_what_is_no_year_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="year"):
        parse_year(text)


@pytest.mark.parametrize(
    "text", ["", "978", "9780141441147", "9770141441146", "97801414411466", "x" * 10, "014144114X"]
)
def test_what_is_no_isbn_says_so(text: str) -> None:
    with pytest.raises(ValueError, match="is not an ISBN"):
        isbn13(text)


TRICKY = st.text(alphabet=string.ascii_letters + ' ,;|\t"\n\r\x00éß', max_size=30)


@settings(max_examples=100)
@given(st.lists(st.tuples(TRICKY, TRICKY), max_size=20), st.binary(max_size=200))
def test_no_damage_keeps_a_later_row_from_being_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], noise: bytes
) -> None:
    file = tmp_path_factory.mktemp("noise") / "books.csv"
    damage = "".join(f"{title},{author}\n" for title, author in rows).encode() + noise.replace(b"\x85", b"")
    content = b"title,author\n" + damage + b"\n" * 2 + b"Last,Author\n" * (MAX_LINES_OF_A_ROW + 1)
    file.write_bytes(content)
    read_rows = list(BooksFile(file).rows())
    assert [row.title for row in read_rows if isinstance(row, BookRow)][-1] == "Last"
    lines = [row.line for row in read_rows]
    assert lines == sorted(set(lines))


def test_every_isbn_of_the_first_books_is_right_and_no_book_is_there_twice() -> None:
    from app.seed import BOOKS

    rows = list(BooksFile(BOOKS).rows())
    assert bad(rows) == []
    assert not any(row.isbn_left_out for row in rows if isinstance(row, BookRow))
    assert len({(row.title, row.author) for row in rows if isinstance(row, BookRow)}) == len(rows) > 300
    isbns = [row.isbn for row in rows if isinstance(row, BookRow) and row.isbn]
    assert len(set(isbns)) == len(isbns) > 100
