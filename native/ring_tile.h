/* Included by ring.c once for each width of element, with these names defined: NAME(x), WORD, LANES (elements in a vector),
   BROADCAST, TIMES, PLUS.

   Eight rows and two vectors of columns of the result stay in registers while a range of the inner dimension goes by. */

/* rows x columns of the result, of up to ROWS x COLUMNS; b is packed: [p][COLUMNS]. */
__attribute__((target("avx512f,avx512dq"))) static void NAME(tile)(const WORD *a, const size_t *steps,
                                                                    const WORD *b, size_t inner, WORD *out,
                                                                    size_t pitch, size_t rows, size_t columns)
{
    enum { COLUMNS = 2 * LANES };
    __m512i sum[ROWS][2];
    const WORD *row[ROWS];
    for (size_t r = 0; r < ROWS; r++) { /* what lies beyond the last row is computed and left out */
        sum[r][0] = sum[r][1] = _mm512_setzero_si512();
        row[r] = a + (r < rows ? r : 0) * steps[0];
    }
    for (size_t p = 0; p < inner; p++) {
        const __m512i first = _mm512_load_si512(b + p * COLUMNS), second = _mm512_load_si512(b + p * COLUMNS + LANES);
        for (int r = 0; r < ROWS; r++) {
            const __m512i factor = BROADCAST(row[r][p * steps[1]]);
            sum[r][0] = PLUS(sum[r][0], TIMES(factor, first));
            sum[r][1] = PLUS(sum[r][1], TIMES(factor, second));
        }
    }
    if (columns == COLUMNS && rows == ROWS) {
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2; v++) {
                WORD *place = out + r * pitch + v * LANES;
                _mm512_storeu_si512(place, PLUS(_mm512_loadu_si512(place), sum[r][v]));
            }
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        WORD edge[2 * LANES];
        _mm512_storeu_si512(edge, sum[r][0]);
        _mm512_storeu_si512(edge + LANES, sum[r][1]);
        for (size_t j = 0; j < columns; j++)
            out[r * pitch + j] += edge[j];
    }
}

/* out += left right; strides in elements, of rows and of columns; scratch aligned to 64 bytes. */
static void NAME(multiply)(const WORD *left, const size_t *ls, const WORD *right, const size_t *rs, WORD *out, size_t m,
                           size_t k, size_t n, WORD *scratch)
{
    enum { COLUMNS = 2 * LANES };
    for (size_t from = 0; from < k; from += INNER) {
        const size_t inner = k - from < INNER ? k - from : INNER;
        for (size_t across = 0; across < n; across += ACROSS) {
            const size_t wide = n - across < ACROSS ? n - across : ACROSS;
            for (size_t j = 0; j < wide; j += COLUMNS)
                for (size_t p = 0; p < inner; p++) {
                    const WORD *row = right + (from + p) * rs[0] + (across + j) * rs[1];
                    WORD *packed = scratch + j * INNER + p * COLUMNS;
                    const size_t held = wide - j < COLUMNS ? wide - j : COLUMNS;
                    if (held == COLUMNS && rs[1] == 1)
                        memcpy(packed, row, sizeof(WORD) * COLUMNS);
                    else
                        for (size_t c = 0; c < COLUMNS; c++)
                            packed[c] = c < held ? row[c * rs[1]] : 0;
                }
            for (size_t i = 0; i < m; i += ROWS) {
                const size_t rows = m - i < ROWS ? m - i : ROWS;
                const WORD *a = left + i * ls[0] + from * ls[1];
                for (size_t j = 0; j < wide; j += COLUMNS)
                    NAME(tile)(a, ls, scratch + j * INNER, inner, out + i * n + across + j, n, rows,
                               wide - j < COLUMNS ? wide - j : COLUMNS);
            }
        }
    }
}

#undef NAME
#undef WORD
#undef LANES
#undef BROADCAST
#undef TIMES
#undef PLUS
