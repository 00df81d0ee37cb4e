/* BitNet b1.58 in C99 and float32, written from docs/porting.md alone.
 *
 *   cc -O2 -std=c99 -o plain_port plain_port.c -lm
 *   ./plain_port FOLDER       reads a homework exported `--for raw`, writes FOLDER/dump/
 *
 * Plain loops, one op a function, nothing tuned. Ids, configurations, shapes and constants are read from the
 * homework, so that any seed will do.
 */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH = 1024, NAME = 128 };

/* ---- Errors and memory ---- */

static void die(const char *format, ...)
{
    va_list arguments;

    fputs("plain_port: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

/* snprintf that does not cut silently. */
static void print_to(char *text, size_t size, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text, size, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= size)
        die("name or path too long: %s...", text);
}

/* Everything is kept until the program ends (it is about 2 MB), then freed as one list. */
typedef struct Block { struct Block *next; void *data; } Block;
static Block *blocks;

static void *allocate(size_t count, size_t size)
{
    Block *block = malloc(sizeof *block);

    if (block == NULL || (block->data = calloc(count ? count : 1, size)) == NULL)
        die("out of memory (%lu items of %lu bytes)", (unsigned long)count, (unsigned long)size);
    block->next = blocks;
    blocks = block;
    return block->data;
}

static void free_all(void)
{
    while (blocks != NULL) {
        Block *next = blocks->next;
        free(blocks->data);
        free(blocks);
        blocks = next;
    }
}

/* ---- Files ---- */

/* A whole file; one zero byte is put after it, so that text is a string. */
static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *data;
    long length;

    if (file == NULL)
        die("cannot open %s", path);
    if (fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0)
        die("cannot find the size of %s", path);
    data = allocate((size_t)length + 1, 1);
    if (fread(data, 1, (size_t)length, file) != (size_t)length)
        die("cannot read %s", path);
    fclose(file);
    *size = (size_t)length;
    return data;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    if (file == NULL)
        die("cannot write %s (does its folder exist?)", path);
    if (fwrite(data, 1, size, file) != size || fclose(file) != 0)
        die("cannot write all of %s", path);
}

/* ---- As much JSON as a homework needs ---- */

/* What stands after `"key":`, at its first occurrence from `text` on. Enough here: in each file the keys that
 * we look for come in a known order, and a string of the same letters that is a value has no colon behind. */
static const char *value_of(const char *text, const char *key)
{
    char quoted[NAME];
    const char *at = text;

    print_to(quoted, sizeof quoted, "\"%s\"", key);
    while ((at = strstr(at, quoted)) != NULL) {
        at += strlen(quoted);
        at += strspn(at, " \t\r\n");
        if (*at == ':')
            return at + 1 + strspn(at + 1, " \t\r\n");
    }
    die("no key %s in the JSON", quoted);
    return NULL;
}

static double number_of(const char *text, const char *key)
{
    const char *value = value_of(text, key);
    char *end;
    double number = strtod(value, &end);

    if (end == value)
        die("%s is not a number", key);
    return number;
}

static int is_word(const char *text, const char *key, const char *word)
{
    const char *value = value_of(text, key);
    size_t length = strlen(word);

    return value[0] == '"' && strncmp(value + 1, word, length) == 0 && value[1 + length] == '"';
}

/* `[1, 2, 3]` to numbers; returns how many there are. */
static size_t list_of(const char *text, const char *key, long *list, size_t most)
{
    const char *at = value_of(text, key);
    size_t count = 0;

    if (*at++ != '[')
        die("%s is not a list", key);
    while (at += strspn(at, " \t\r\n,"), *at != ']') {
        char *end;
        long item = strtol(at, &end, 10);
        if (end == at || item < 0 || count == most)
            die("%s is not a list of at most %lu natural numbers", key, (unsigned long)most);
        list[count++] = item;
        at = end;
    }
    return count;
}

/* ---- Tensors ---- */

typedef struct { size_t rows, cols; float *at; } Matrix;
/* Whole numbers and what multiplies them: one scale a row for activations, one in all for weights. */
typedef struct { size_t rows, cols; int8_t *at; float *scale; } Codes;
/* A folder of tensors with the text of its index.json. */
typedef struct { const char *path; const char *index; } Folder;

static Matrix new_matrix(size_t rows, size_t cols)
{
    Matrix m = { rows, cols, allocate(rows * cols, sizeof(float)) };
    return m;
}

static Codes new_codes(size_t rows, size_t cols, size_t scales)
{
    Codes c = { rows, cols, allocate(rows * cols, 1), allocate(scales, sizeof(float)) };
    return c;
}

static Folder open_folder(const char *path)
{
    Folder folder = { path, NULL };
    char file[PATH];
    size_t size;

    print_to(file, sizeof file, "%s/index.json", path);
    folder.index = read_file(file, &size);
    return folder;
}

/* The bytes of one tensor. Axes after the first are columns, (T, H, Dh) is (T, H * Dh); a vector is one row. */
static void *load(Folder folder, const char *name, size_t width, size_t *rows, size_t *cols)
{
    char path[PATH];
    long shape[4];
    const char *entry = value_of(folder.index, name);
    size_t i, size, rank = list_of(entry, "shape", shape, 4);
    void *data;

    if (!is_word(entry, "dtype", width == 1 ? "int8" : "float32"))
        die("%s has another dtype than expected", name);
    *rows = rank > 1 ? (size_t)shape[0] : 1;
    *cols = 1;
    for (i = rank > 1; i < rank; i++)
        *cols *= (size_t)shape[i];
    print_to(path, sizeof path, "%s/%s.bin", folder.path, name);
    data = read_file(path, &size);
    if (size != *rows * *cols * width)
        die("%s has %lu bytes, not what its shape says", path, (unsigned long)size);
    return data;
}

static Matrix load_matrix(Folder folder, const char *format, ...)
{
    char name[NAME];
    va_list arguments;
    Matrix m;

    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    m.at = load(folder, name, sizeof(float), &m.rows, &m.cols);
    return m;
}

static Codes load_codes(Folder folder, const char *name, const char *scale_name)
{
    Codes c;

    c.at = load(folder, name, 1, &c.rows, &c.cols);
    c.scale = load_matrix(folder, "%s", scale_name).at;
    return c;
}

/* ---- The dump ---- */

static struct { const char *folder, *homework; FILE *index; int count; } dump;

/* Shapes are those that homework.json lists, probs (H, T, T) for instance, if they hold as many elements. */
static void dump_bytes(const char *prefix, const char *name, const char *dtype, size_t count, const void *data)
{
    char full[NAME], quoted[NAME + 2], path[PATH];
    const char *entry;
    long shape[4];
    size_t i, rank, elements = 1;

    print_to(full, sizeof full, "%s%s", prefix, name);
    print_to(quoted, sizeof quoted, "\"%s\"", full);
    entry = strstr(value_of(dump.homework, "dump"), quoted);
    if (entry == NULL)
        die("homework.json does not ask for %s", full);
    rank = list_of(entry, "shape", shape, 4);
    fprintf(dump.index, "%s\n \"%s\": {\"file\": \"%s.bin\", \"dtype\": \"%s\", \"shape\": [",
            dump.count++ ? "," : "{", full, full, dtype);
    for (i = 0; i < rank; i++) {
        fprintf(dump.index, "%s%ld", i ? ", " : "", shape[i]);
        elements *= (size_t)shape[i];
    }
    fputs("]}", dump.index);
    if (elements != count)
        die("%s has %lu elements, not %lu", full, (unsigned long)count, (unsigned long)elements);
    print_to(path, sizeof path, "%s/%s.bin", dump.folder, full);
    write_file(path, data, count * (dtype[0] == 'i' ? 1 : sizeof(float)));
}

static void dump_matrix(const char *prefix, const char *name, Matrix m)
{
    dump_bytes(prefix, name, "float32", m.rows * m.cols, m.at);
}

static void dump_codes(const char *prefix, const char *name, Codes c, char kind, size_t scales)
{
    char full[NAME];

    print_to(full, sizeof full, "%s.%c_q", name, kind);
    dump_bytes(prefix, full, "int8", c.rows * c.cols, c.at);
    print_to(full, sizeof full, "%s.%c_scale", name, kind);
    dump_bytes(prefix, full, "float32", scales, c.scale);
}

/* ---- The arithmetic ---- */

/* Half to even: rintf in the default rounding mode. Clamped as a float, a cast out of range is undefined. */
static int8_t to_code(float value, float low, float high)
{
    return (int8_t)fminf(fmaxf(rintf(value), low), high);
}

static Codes quantise(Matrix x)
{
    Codes c = new_codes(x.rows, x.cols, x.rows);
    size_t t, k;

    for (t = 0; t < x.rows; t++) {
        const float *row = x.at + t * x.cols;
        float a = 1e-5f, factor;
        for (k = 0; k < x.cols; k++)
            a = fmaxf(a, fabsf(row[k]));
        factor = 127.0f / a;                 /* one division, then products: ties fall as in the reference */
        for (k = 0; k < x.cols; k++)
            c.at[t * x.cols + k] = to_code(row[k] * factor, -128.0f, 127.0f);
        c.scale[t] = a / 127.0f;
    }
    return c;
}

static Codes ternarise(Matrix w)
{
    Codes c = new_codes(w.rows, w.cols, 1);
    size_t i, count = w.rows * w.cols;
    double sum = 0.0;                        /* a float32 sum drifts on a large matrix */
    float factor;

    for (i = 0; i < count; i++)
        sum += fabsf(w.at[i]);
    c.scale[0] = fmaxf((float)(sum / (double)count), 1e-5f);
    factor = 1.0f / c.scale[0];
    for (i = 0; i < count; i++)
        c.at[i] = to_code(w.at[i] * factor, -1.0f, 1.0f);
    return c;
}

static Matrix product(Codes x, Codes w)
{
    Matrix y = new_matrix(x.rows, w.rows);
    size_t t, n, k;

    if (x.cols != w.cols)
        die("a product of %lu columns with %lu", (unsigned long)x.cols, (unsigned long)w.cols);
    for (t = 0; t < x.rows; t++)
        for (n = 0; n < w.rows; n++) {
            int32_t sum = 0;                 /* exact; 16 bits are too few, and float32's 24 too */
            for (k = 0; k < x.cols; k++)
                sum += x.at[t * x.cols + k] * w.at[n * w.cols + k];
            y.at[t * y.cols + n] = (float)sum * (x.scale[t] * w.scale[0]);
        }
    return y;
}

/* x @ w.T in full precision: the head. */
static Matrix full_product(Matrix x, Matrix w)
{
    Matrix y = new_matrix(x.rows, w.rows);
    size_t t, n, k;

    if (x.cols != w.cols)
        die("a product of %lu columns with %lu", (unsigned long)x.cols, (unsigned long)w.cols);
    for (t = 0; t < x.rows; t++)
        for (n = 0; n < w.rows; n++)
            for (k = 0; k < x.cols; k++)
                y.at[t * y.cols + n] += x.at[t * x.cols + k] * w.at[n * w.cols + k];
    return y;
}

static Matrix rms_norm(Matrix x, Matrix gain, float eps)
{
    Matrix y = new_matrix(x.rows, x.cols);
    size_t t, k;

    if (gain.cols != x.cols)
        die("a gain of %lu for %lu columns", (unsigned long)gain.cols, (unsigned long)x.cols);
    for (t = 0; t < x.rows; t++) {
        const float *row = x.at + t * x.cols;
        float squares = 0.0f, rstd;
        for (k = 0; k < x.cols; k++)
            squares += row[k] * row[k];
        rstd = 1.0f / sqrtf(squares / (float)x.cols + eps);
        for (k = 0; k < x.cols; k++)
            y.at[t * x.cols + k] = row[k] * rstd * gain.at[k];
    }
    return y;
}

static Matrix rope(Matrix x, size_t width, float theta)
{
    Matrix y = new_matrix(x.rows, x.cols);
    size_t t, h, i, half = width / 2;

    for (t = 0; t < x.rows; t++)
        for (h = 0; h < x.cols; h += width)
            for (i = 0; i < half; i++) {
                float angle = (float)t * powf(theta, -2.0f * (float)i / (float)width);
                size_t low = t * x.cols + h + i, high = low + half;
                y.at[low] = x.at[low] * cosf(angle) - x.at[high] * sinf(angle);
                y.at[high] = x.at[high] * cosf(angle) + x.at[low] * sinf(angle);
            }
    return y;
}

/* Softmax of the first `count` scores in place; the others, later keys, are zeros already. */
static void softmax(float *score, size_t count)
{
    float top = score[0], sum = 0.0f;
    size_t i;

    for (i = 1; i < count; i++)
        top = fmaxf(top, score[i]);
    for (i = 0; i < count; i++)
        sum += score[i] = expf(score[i] - top);
    for (i = 0; i < count; i++)
        score[i] /= sum;
}

/* (H, T, T) as H * T rows. Query head h reads key head h / repeat. */
static Matrix attention_probs(Matrix q, Matrix k, size_t heads, size_t repeat)
{
    size_t h, t, s, i, tokens = q.rows, width = q.cols / heads;
    Matrix probs = new_matrix(heads * tokens, tokens);

    for (h = 0; h < heads; h++)
        for (t = 0; t < tokens; t++) {
            float *row = probs.at + (h * tokens + t) * tokens;
            for (s = 0; s <= t; s++) {
                const float *query = q.at + t * q.cols + h * width;
                const float *key = k.at + s * k.cols + h / repeat * width;
                for (i = 0; i < width; i++)
                    row[s] += query[i] * key[i];
                row[s] /= sqrtf((float)width);
            }
            softmax(row, t + 1);
        }
    return probs;
}

static Matrix attention_sum(Matrix probs, Matrix v, size_t heads, size_t repeat)
{
    size_t h, t, s, i, tokens = v.rows, width = v.cols * repeat / heads;
    Matrix y = new_matrix(tokens, heads * width);

    for (h = 0; h < heads; h++)
        for (t = 0; t < tokens; t++)
            for (s = 0; s <= t; s++)
                for (i = 0; i < width; i++)
                    y.at[t * y.cols + h * width + i] +=
                        probs.at[(h * tokens + t) * tokens + s] * v.at[s * v.cols + h / repeat * width + i];
    return y;
}

static Matrix relu2(Matrix gate, Matrix up)
{
    Matrix y = new_matrix(gate.rows, gate.cols);
    size_t i;

    for (i = 0; i < y.rows * y.cols; i++) {
        float positive = fmaxf(gate.at[i], 0.0f);
        y.at[i] = positive * positive * up.at[i];
    }
    return y;
}

/* exp(-gate) may be infinite for a very negative gate; the quotient is then the right limit, zero. */
static Matrix swiglu(Matrix gate, Matrix up)
{
    Matrix y = new_matrix(gate.rows, gate.cols);
    size_t i;

    for (i = 0; i < y.rows * y.cols; i++)
        y.at[i] = gate.at[i] / (1.0f + expf(-gate.at[i])) * up.at[i];
    return y;
}

static Matrix add(Matrix x, Matrix y)
{
    Matrix sum = new_matrix(x.rows, x.cols);
    size_t i;

    for (i = 0; i < x.rows * x.cols; i++)
        sum.at[i] = x.at[i] + y.at[i];
    return sum;
}

