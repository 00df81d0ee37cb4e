/* BitNet b1.58 in C99 and float32, written from docs/porting.md alone.
 *
 *   cc -O2 -std=c99 -o mini_port mini_port.c -lm
 *   ./mini_port FOLDER       reads a homework exported `--for raw`, writes FOLDER/dump/
 *
 * Plain loops, one op a function, nothing tuned. Ids, configurations, shapes and constants are read from the
 * homework, so that any seed will do. */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Errors and memory ---- */

static void die(const char *format, const char *what) {
    fputs("mini_port: ", stderr);
    fprintf(stderr, format, what);
    fputc('\n', stderr);
    exit(1);
}

/* New memory is zero. It is all kept until the program ends (about 2 MB); the list owns it. */
typedef struct Block { struct Block *next; void *data; } Block;
static Block *blocks;

static void *allocate(size_t count, size_t size) {
    Block *block = malloc(sizeof *block);

    if (block == NULL || (block->data = calloc(count ? count : 1, size)) == NULL)
        die("%s", "out of memory");
    block->next = blocks;
    blocks = block;
    return block->data;
}

/* A new string, as printf would write it. */
static char *text(const char *format, ...) {
    va_list arguments;
    char *string = allocate(1024, 1);
    int length;

    va_start(arguments, format);
    length = vsnprintf(string, 1024, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= 1024)
        die("name too long: %s...", string);
    return string;
}

/* ---- Files ---- */

/* A whole file; a zero byte is put after it, so that text is a string. */
static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    char *data;
    long length;

    if (file == NULL)
        die("cannot open %s", path);
    if (fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0)
        die("cannot find the size of %s", path);
    data = allocate((size_t)length + 1, 1);
    *size = fread(data, 1, (size_t)length, file);
    if (*size != (size_t)length)
        die("cannot read %s", path);
    fclose(file);
    return data;
}

static void write_file(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");

    if (file == NULL)
        die("cannot write %s (does its folder exist?)", path);
    if (fwrite(data, 1, size, file) != size || fclose(file) != 0)
        die("cannot write all of %s", path);
}

/* ---- As much JSON as a homework needs ---- */

/* What stands after `"key":`, at its first occurrence from `json` on. That is enough: we look for keys in the
 * order of the file, and a value of the same letters has no colon behind. */
static const char *value_of(const char *json, const char *key) {
    const char *quoted = text("\"%s\"", key);

    while ((json = strstr(json, quoted)) != NULL) {
        json += strlen(quoted);
        json += strspn(json, " \t\r\n");
        if (*json == ':')
            return json + 1 + strspn(json + 1, " \t\r\n");
    }
    die("no key %s in the JSON", quoted);
    return NULL;
}

static double number_of(const char *json, const char *key) {
    const char *value = value_of(json, key);
    char *end;
    double number = strtod(value, &end);

    if (end == value)
        die("%s is not a number", key);
    return number;
}

static size_t size_of(const char *json, const char *key) {
    double number = number_of(json, key);

    if (!(number >= 1 && number <= 1e6))
        die("%s is not a size", key);
    return (size_t)number;
}

static int is_word(const char *json, const char *key, const char *word) {
    const char *quoted = text("\"%s\"", word);
    return strncmp(value_of(json, key), quoted, strlen(quoted)) == 0;
}

/* `[1, 2, 3]` to numbers; returns how many there are. */
static size_t list_of(const char *json, const char *key, size_t *list, size_t most) {
    const char *at = value_of(json, key);
    size_t count = 0;

    if (*at++ != '[')
        die("%s is not a list", key);
    while (at += strspn(at, " \t\r\n,"), *at != ']') {
        char *end;
        long item = strtol(at, &end, 10);
        if (end == at || item < 0 || count == most)
            die("%s is too long, or not of natural numbers", key);
        list[count++] = (size_t)item;
        at = end;
    }
    return count;
}

/* ---- Tensors ---- */

typedef struct { size_t rows, cols; float *at; } Matrix;
/* Whole numbers and what multiplies them: one scale a row for activations, one in all for weights. */
typedef struct { size_t rows, cols, scales; int8_t *at; float *scale; } Codes;
typedef struct { const char *path, *index; } Folder;        /* index: the text of its index.json */

static Matrix new_matrix(size_t rows, size_t cols) {
    Matrix m = { rows, cols, allocate(rows * cols, sizeof(float)) };
    return m;
}

static Codes new_codes(size_t rows, size_t cols, size_t scales) {
    Codes c = { rows, cols, scales, allocate(rows * cols, 1), allocate(scales, sizeof(float)) };
    return c;
}

static Folder open_folder(const char *parent, const char *name) {
    size_t size;
    Folder folder = { text("%s/%s", parent, name), NULL };
    folder.index = read_file(text("%s/index.json", folder.path), &size);
    return folder;
}

/* The bytes of one tensor. A vector is one row; (T, H, Dh) is (T, H * Dh). */
static void *load(Folder folder, const char *name, size_t width, size_t *rows, size_t *cols) {
    size_t shape[4], size, rank = list_of(value_of(folder.index, name), "shape", shape, 4);
    const char *path = text("%s/%s.bin", folder.path, name);
    void *data = read_file(path, &size);

    *rows = rank > 1 ? shape[0] : 1;
    *cols = 1;
    for (size_t i = rank > 1; i < rank; i++)
        *cols *= shape[i];
    if (size != *rows * *cols * width)
        die("the size of %s is not what its shape says", path);
    return data;
}

static Matrix load_matrix(Folder folder, const char *name) {
    Matrix m;
    m.at = load(folder, name, sizeof(float), &m.rows, &m.cols);
    return m;
}

static Codes load_codes(Folder folder, const char *name, const char *scale_name) {
    Codes c;
    Matrix scale = load_matrix(folder, scale_name);

    c.at = load(folder, name, 1, &c.rows, &c.cols);
    c.scale = scale.at;
    c.scales = scale.rows * scale.cols;
    return c;
}

/* ---- The dump ---- */

static struct { const char *path, *wanted; FILE *index; int count; } dump;

/* The shape is the one that homework.json lists, (H, T, T) for instance, if it has as many elements. */
static void dump_bytes(const char *name, const char *dtype, size_t width, size_t count, const void *data) {
    const char *entry = strstr(dump.wanted, text("\"name\": \"%s\"", name));
    size_t shape[4], rank, elements = 1;

    if (entry == NULL)
        die("homework.json does not ask for %s", name);
    rank = list_of(entry, "shape", shape, 4);
    fprintf(dump.index, "%s\n \"%s\": {\"file\": \"%s.bin\", \"dtype\": \"%s\", \"shape\": [",
            dump.count++ ? "," : "{", name, name, dtype);
    for (size_t i = 0; i < rank; i++) {
        fprintf(dump.index, "%s%lu", i ? ", " : "", (unsigned long)shape[i]);
        elements *= shape[i];
    }
    fputs("]}", dump.index);
    if (elements != count)
        die("%s has not as many elements as homework.json says", name);
    write_file(text("%s/%s.bin", dump.path, name), data, count * width);
}

static Matrix dump_matrix(const char *name, Matrix m) {
    dump_bytes(name, "float32", sizeof(float), m.rows * m.cols, m.at);
    return m;
}

/* kind is x for activations, w for weights. */
static Codes dump_codes(const char *name, char kind, Codes c) {
    dump_bytes(text("%s.%c_q", name, kind), "int8", 1, c.rows * c.cols, c.at);
    dump_bytes(text("%s.%c_scale", name, kind), "float32", sizeof(float), c.scales, c.scale);
    return c;
}

/* ---- The arithmetic ---- */

/* rintf rounds half to even. Clamped as a float: to cast a number out of range is undefined. */
static int8_t to_code(float value, float low, float high) {
    return (int8_t)fminf(fmaxf(rintf(value), low), high);
}

static Codes quantise(Matrix x) {
    Codes c = new_codes(x.rows, x.cols, x.rows);

    for (size_t t = 0; t < x.rows; t++) {
        const float *row = x.at + t * x.cols;
        float a = 1e-5f, factor;
        for (size_t k = 0; k < x.cols; k++)
            a = fmaxf(a, fabsf(row[k]));
        factor = 127.0f / a;                 /* one division, then products: it decides ties */
        for (size_t k = 0; k < x.cols; k++)
            c.at[t * x.cols + k] = to_code(row[k] * factor, -128.0f, 127.0f);
        c.scale[t] = a / 127.0f;
    }
    return c;
}

static Codes ternarise(Matrix w) {
    Codes c = new_codes(w.rows, w.cols, 1);
    size_t count = w.rows * w.cols;
    double sum = 0.0;                        /* a float32 sum drifts on a large matrix */
    float factor;

    for (size_t i = 0; i < count; i++)
        sum += fabsf(w.at[i]);
    c.scale[0] = fmaxf((float)(sum / (double)count), 1e-5f);
    factor = 1.0f / c.scale[0];
    for (size_t i = 0; i < count; i++)
        c.at[i] = to_code(w.at[i] * factor, -1.0f, 1.0f);
    return c;
}

static Matrix product(Codes x, Codes w) {
    Matrix y = new_matrix(x.rows, w.rows);

    if (x.cols != w.cols)
        die("%s", "a product of matrices that do not fit");
    for (size_t t = 0; t < x.rows; t++)
        for (size_t n = 0; n < w.rows; n++) {
            int32_t sum = 0;                 /* exact, where 16 bits and float32's 24 are too few */
            for (size_t k = 0; k < x.cols; k++)
                sum += x.at[t * x.cols + k] * w.at[n * w.cols + k];
            y.at[t * y.cols + n] = (float)sum * (x.scale[t] * w.scale[0]);
        }
    return y;
}

static float dot(const float *x, const float *y, size_t count) {
    float sum = 0.0f;
    for (size_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* x @ w.T in full precision: the head. */
static Matrix full_product(Matrix x, Matrix w) {
    Matrix y = new_matrix(x.rows, w.rows);

    if (x.cols != w.cols)
        die("%s", "a head that does not fit");
    for (size_t t = 0; t < x.rows; t++)
        for (size_t n = 0; n < w.rows; n++)
            y.at[t * y.cols + n] = dot(x.at + t * x.cols, w.at + n * w.cols, x.cols);
    return y;
}

static Matrix rms_norm(Matrix x, Matrix gain, float eps) {
    Matrix y = new_matrix(x.rows, x.cols);

    for (size_t t = 0; t < x.rows; t++) {
        const float *row = x.at + t * x.cols;
        float rstd = 1.0f / sqrtf(dot(row, row, x.cols) / (float)x.cols + eps);
        for (size_t k = 0; k < x.cols; k++)
            y.at[t * x.cols + k] = row[k] * rstd * gain.at[k];
    }
    return y;
}

static Matrix rope(Matrix x, size_t width, float theta) {
    Matrix y = new_matrix(x.rows, x.cols);
    size_t half = width / 2;

    for (size_t t = 0; t < x.rows; t++)
        for (size_t h = 0; h < x.cols; h += width)
            for (size_t i = 0; i < half; i++) {
                float angle = (float)t * powf(theta, -2.0f * (float)i / (float)width);
                size_t low = t * x.cols + h + i, high = low + half;
                y.at[low] = x.at[low] * cosf(angle) - x.at[high] * sinf(angle);
                y.at[high] = x.at[high] * cosf(angle) + x.at[low] * sinf(angle);
            }
    return y;
}

static void softmax(float *score, size_t count) {
    float top = score[0], sum = 0.0f;

    for (size_t i = 1; i < count; i++)
        top = fmaxf(top, score[i]);
    for (size_t i = 0; i < count; i++)
        sum += score[i] = expf(score[i] - top);
    for (size_t i = 0; i < count; i++)
        score[i] /= sum;
}

/* (H, T, T) as H * T rows; later keys keep their zero. `share` query heads read one key head. */
static Matrix attention_probs(Matrix q, Matrix k, size_t heads, size_t share) {
    size_t tokens = q.rows, width = q.cols / heads;
    Matrix probs = new_matrix(heads * tokens, tokens);

    for (size_t h = 0; h < heads; h++)
        for (size_t t = 0; t < tokens; t++) {
            const float *query = q.at + t * q.cols + h * width, *key = k.at + h / share * width;
            float *row = probs.at + (h * tokens + t) * tokens;
            for (size_t s = 0; s <= t; s++)
                row[s] = dot(query, key + s * k.cols, width) / sqrtf((float)width);
            softmax(row, t + 1);
        }
    return probs;
}

static Matrix attention_sum(Matrix probs, Matrix v, size_t heads, size_t share) {
    size_t tokens = v.rows, width = v.cols * share / heads;
    Matrix y = new_matrix(tokens, heads * width);

    for (size_t h = 0; h < heads; h++)
        for (size_t t = 0; t < tokens; t++)
            for (size_t s = 0; s <= t; s++) {
                float p = probs.at[(h * tokens + t) * tokens + s];
                for (size_t i = 0; i < width; i++)
                    y.at[t * y.cols + h * width + i] += p * v.at[s * v.cols + h / share * width + i];
            }
    return y;
}

/* exp(-gate) may be infinite for a very negative gate; the quotient is then the right limit, zero. */
static Matrix gated_unit(Matrix gate, Matrix up, int is_relu2) {
    Matrix y = new_matrix(gate.rows, gate.cols);

    for (size_t i = 0; i < y.rows * y.cols; i++) {
        float g = gate.at[i], positive = fmaxf(g, 0.0f);
        y.at[i] = (is_relu2 ? positive * positive : g / (1.0f + expf(-g))) * up.at[i];
    }
    return y;
}

static Matrix add(Matrix x, Matrix y) {
    Matrix sum = new_matrix(x.rows, x.cols);

    for (size_t i = 0; i < x.rows * x.cols; i++)
        sum.at[i] = x.at[i] + y.at[i];
    return sum;
}

/* ---- The models ---- */

typedef struct {
    const char *name;
    Folder folder;
    size_t layers, heads, share;
    float eps, theta;
    int is_sub, is_relu2, is_tied;
} Model;

static Model open_model(const char *path, const char *homework, const char *name) {
    const char *config = value_of(value_of(homework, name), "config");
    Model m = { .name = name, .folder = open_folder(path, name) };

    m.layers = size_of(config, "n_layers");
    m.heads = size_of(config, "n_heads");
    m.share = m.heads / size_of(config, "n_kv_heads");
    m.eps = (float)number_of(config, "norm_eps");
    m.theta = (float)number_of(config, "rope_theta");
    m.is_sub = is_word(config, "norm", "sub");
    m.is_relu2 = is_word(config, "glu", "relu2");
    m.is_tied = value_of(config, "tied_embeddings")[0] == 't';
    return m;
}

/* What a layer does with its tensors; `at` is "layers.0." or "". The results are dumped on the way. */
static Matrix keep(Model m, const char *at, const char *name, Matrix x) {
    return dump_matrix(text("%s.%s%s", m.name, at, name), x);
}

static Codes codes_of(Model m, const char *at, const char *name, Matrix x) {
    return dump_codes(text("%s.%s%s", m.name, at, name), 'x', quantise(x));
}

static Matrix norm(Model m, const char *at, const char *name, Matrix x) {
    Matrix gain = load_matrix(m.folder, text("%s%s.gain", at, name));
    if (gain.cols != x.cols)
        die("the gain of %s does not fit", name);
    return keep(m, at, name, rms_norm(x, gain, m.eps));
}

static Matrix project(Model m, const char *at, const char *name, Codes x, const char *weight) {
    const char *stored = text("%s%s", at, weight);
    Codes w = load_codes(m.folder, stored, text("%s.scale", stored));
    dump_codes(text("%s.%s", m.name, stored), 'w', w);
    return keep(m, at, name, product(x, w));
}

static Matrix attention(Model m, const char *at, Matrix x) {
    Codes c = codes_of(m, at, "attn_norm", norm(m, at, "attn_norm", x));
    Matrix q = project(m, at, "q", c, "attn.wq"), k = project(m, at, "k", c, "attn.wk");
    Matrix v = project(m, at, "v", c, "attn.wv"), probs, y;
    size_t width = q.cols / m.heads;

    if (width % 2 || q.cols != width * m.heads || k.cols * m.share != q.cols || v.cols != k.cols)
        die("the heads of %s do not fit", at);
    q = keep(m, at, "q_rope", rope(q, width, m.theta));
    k = keep(m, at, "k_rope", rope(k, width, m.theta));
    probs = keep(m, at, "probs", attention_probs(q, k, m.heads, m.share));
    y = keep(m, at, "attn", attention_sum(probs, v, m.heads, m.share));
    if (m.is_sub)
        y = norm(m, at, "attn_sub_norm", y);
    return project(m, at, "o", codes_of(m, at, m.is_sub ? "attn_sub_norm" : "attn", y), "attn.wo");
}

static Matrix feed_forward(Model m, const char *at, Matrix h) {
    Codes c = codes_of(m, at, "ffn_norm", norm(m, at, "ffn_norm", h));
    Matrix gate = project(m, at, "gate", c, "ffn.w_gate"), up = project(m, at, "up", c, "ffn.w_up");
    Matrix y = keep(m, at, "act", gated_unit(gate, up, m.is_relu2));

    if (m.is_sub)
        y = norm(m, at, "ffn_sub_norm", y);
    return project(m, at, "down", codes_of(m, at, m.is_sub ? "ffn_sub_norm" : "act", y), "ffn.w_down");
}

static void run_model(const char *path, const char *homework, const char *name) {
    Model m = open_model(path, homework, name);
    Matrix embedding = load_matrix(m.folder, "embedding"), x, head;
    size_t ids[64], tokens = list_of(value_of(homework, name), "ids", ids, 64);

    x = new_matrix(tokens, embedding.cols);
    for (size_t t = 0; t < tokens; t++) {
        if (ids[t] >= embedding.rows)
            die("an id of %s is outside of its vocabulary", name);
        memcpy(x.at + t * x.cols, embedding.at + ids[t] * x.cols, x.cols * sizeof(float));
    }
    keep(m, "", "embedding_out", x);
    for (size_t l = 0; l < m.layers; l++) {
        const char *at = text("layers.%lu.", (unsigned long)l);
        x = keep(m, at, "h", add(x, attention(m, at, x)));
        x = keep(m, at, "out", add(x, feed_forward(m, at, x)));
    }
    head = m.is_tied ? embedding : load_matrix(m.folder, "head");
    keep(m, "", "logits", full_product(norm(m, "", "final_norm", x), head));
}

/* ---- The probes ---- */

static void run_probes(Folder f) {
    static const char *const xs[] = { "quant.ties.x", "quant.small.x", "quant.reciprocal.x", "quant.wide.x" };
    static const char *const ws[] = { "ternary.ties.w", "ternary.offset.w", "ternary.small.w" };
    Codes x = load_codes(f, "product.worst.x_q", "product.worst.x_scale");
    Codes w = load_codes(f, "product.worst.w_q", "product.worst.w_scale");
    Matrix g = load_matrix(f, "rmsnorm.g"), gate = load_matrix(f, "glu.large.gate");
    Matrix up = load_matrix(f, "glu.large.up"), probs;

    for (size_t i = 0; i < sizeof xs / sizeof *xs; i++)
        dump_codes(xs[i], 'x', quantise(load_matrix(f, xs[i])));
    for (size_t i = 0; i < sizeof ws / sizeof *ws; i++)
        dump_codes(ws[i], 'w', ternarise(load_matrix(f, ws[i])));
    dump_matrix("product.worst.y", product(x, w));
    dump_matrix("rmsnorm.small.y", rms_norm(load_matrix(f, "rmsnorm.small.x"), g, 1e-5f));
    dump_matrix("rmsnorm.large.y", rms_norm(load_matrix(f, "rmsnorm.large.x"), g, 1e-5f));
    dump_matrix("glu.large.relu2", gated_unit(gate, up, 1));
    dump_matrix("glu.large.swiglu", gated_unit(gate, up, 0));
    dump_matrix("residual.large.sum",
                add(load_matrix(f, "residual.large.x"), load_matrix(f, "residual.large.y")));
    /* 4 query heads, 2 key heads: (1, 4, 8) and (1, 2, 8). */
    probs = attention_probs(load_matrix(f, "attention.single.q"), load_matrix(f, "attention.single.k"), 4, 2);
    dump_matrix("attention.single.o", attention_sum(probs, load_matrix(f, "attention.single.v"), 4, 2));
}

/* The backward of the product of train.x and train.w, straight through both roundings. */
static void run_backward(Folder f) {
    Matrix dy = load_matrix(f, "train.dy");
    Codes x = dump_codes("train.x", 'x', quantise(load_matrix(f, "train.x")));
    Codes w = dump_codes("train.w", 'w', ternarise(load_matrix(f, "train.w")));
    Matrix dx = new_matrix(x.rows, x.cols), dw = new_matrix(w.rows, w.cols);

    for (size_t m = 0; m < x.rows; m++)
        for (size_t n = 0; n < w.rows; n++)
            for (size_t k = 0; k < x.cols; k++) {
                float d = dy.at[m * w.rows + n];
                dx.at[m * x.cols + k] += d * w.scale[0] * (float)w.at[n * x.cols + k];
                dw.at[n * x.cols + k] += d * ((float)x.at[m * x.cols + k] * x.scale[m]);
            }
    dump_matrix("train.dx", dx);
    dump_matrix("train.dw", dw);
}

/* One AdamW step of one tensor, in place. */
static void adamw(const char *json, int step, const char *name, Matrix p, Matrix m, Matrix v, Matrix g) {
    double b1 = number_of(json, "beta1"), b2 = number_of(json, "beta2"), lr = number_of(json, "lr");
    double decay = strcmp(name, "gain") == 0 ? 0.0 : number_of(json, "decay");
    float eps = (float)number_of(json, "eps");
    float fix1 = (float)(1.0 - pow(b1, step)), fix2 = (float)(1.0 - pow(b2, step));

    for (size_t i = 0; i < p.rows * p.cols; i++) {
        m.at[i] = (float)b1 * m.at[i] + (float)(1.0 - b1) * g.at[i];
        v.at[i] = (float)b2 * v.at[i] + (float)(1.0 - b2) * g.at[i] * g.at[i];
        p.at[i] = p.at[i] * (float)(1.0 - lr * decay)
            - (float)lr * (m.at[i] / fix1) / (sqrtf(v.at[i] / fix2) + eps);
    }
    dump_matrix(text("train.step%d.m.%s", step, name), m);
    dump_matrix(text("train.step%d.v.%s", step, name), v);
    dump_matrix(text("train.step%d.p.%s", step, name), p);
}

static void run_optimiser(Folder f, const char *json) {
    static const char *const names[2] = { "matrix", "gain" };
    Matrix p[2], m[2], v[2], g[2];

    for (int i = 0; i < 2; i++) {
        p[i] = load_matrix(f, text("train.p.%s", names[i]));
        m[i] = new_matrix(p[i].rows, p[i].cols);
        v[i] = new_matrix(p[i].rows, p[i].cols);
    }
    for (int step = 1; step <= 2; step++) {
        float squares = 0.0f, factor;
        for (int i = 0; i < 2; i++) {
            g[i] = load_matrix(f, text("train.step%d.grad.%s", step, names[i]));
            squares += dot(g[i].at, g[i].at, g[i].rows * g[i].cols);
        }
        factor = fminf(1.0f, (float)number_of(json, "max_norm") / sqrtf(squares));
        for (int i = 0; i < 2; i++) {
            for (size_t k = 0; k < g[i].rows * g[i].cols; k++)
                g[i].at[k] *= factor;
            dump_matrix(text("train.step%d.clipped.%s", step, names[i]), g[i]);
            adamw(json, step, names[i], p[i], m[i], v[i], g[i]);
        }
    }
}

int main(int count, char **arguments) {
    const int one = 1;
    const char *homework, *path = count == 2 ? arguments[1] : NULL;
    Folder probes;
    size_t size;

    if (path == NULL)
        die("%s", "usage: mini_port FOLDER");
    if (*(const char *)&one != 1)
        die("%s", "the files are little-endian, this machine is not");
    homework = read_file(text("%s/homework.json", path), &size);
    probes = open_folder(path, "probes");
    dump.path = text("%s/dump", path);
    dump.wanted = value_of(homework, "dump");
    dump.index = fopen(text("%s/index.json", dump.path), "w");
    if (dump.index == NULL)
        die("cannot write into %s (does it exist?)", dump.path);
    run_probes(probes);
    run_model(path, homework, "bitnet");
    run_model(path, homework, "llama");
    run_backward(probes);
    run_optimiser(probes, value_of(homework, "adamw"));
    fputs("\n}\n", dump.index);
    if (ferror(dump.index) || fclose(dump.index) != 0)
        die("cannot write all of %s/index.json", dump.path);
    printf("wrote %d tensors to %s\n", dump.count, dump.path);
    return 0;
}
